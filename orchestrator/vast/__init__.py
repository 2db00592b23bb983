"""One GPU machine rented at vast.ai: started, watched, ended when nobody uses it, and what it has cost."""
