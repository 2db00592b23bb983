"""What the data path costs, beside other proxies; and whether it holds for long. See docs/performance.md."""
