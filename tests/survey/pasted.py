"""What login nodes print: commands' own words, put together as the script does it."""

from collections.abc import Iterable, Mapping, Sequence

Answer = Sequence[str]
"""A command's words; or a pair, its words and its exit status."""


def printed(answers: Mapping[str, Answer] | Iterable[tuple[str, Answer]], before: str = "", whole: bool = True) -> str:
    """The script's output. `answers`: name → text, or (text, status); several of one name as pairs."""
    pairs = answers.items() if isinstance(answers, Mapping) else answers
    text = f"{before}#sluice# survey 1\n"
    for name, answer in pairs:
        words, status = (answer, "0") if isinstance(answer, str) else answer
        text += f"#sluice# begin {name}\n{words}\n#sluice# end {status}\n"
    return text + ("#sluice# complete\n" if whole else "")


HOST = """\
host=login01
user=ada
home=/home/users/ada
shell=/bin/bash
machine=x86_64
glibc=glibc 2.28
system=Rocky Linux 8.10 (Green Obsidian)
clock=1795780248
cpus=128
groups=ada p200117 p200118"""

# A large site: Slurm 23.11 with accounting, Lmod, Lustre with quotas of projects, Apptainer as a module.
SINFO_2311 = """\
cpu|cpu*|up|2-00:00:00|12|idle|(null)|256|491520|x86,amd
cpu|cpu*|up|2-00:00:00|560|allocated|(null)|256|491520|x86,amd
gpu|gpu|up|2-00:00:00|120|allocated|gpu:a100:4(S:0-1)|128|491520|x86,cuda
gpu|gpu|up|2-00:00:00|70|mixed-|gpu:a100:4(S:0-1)|128|491520|x86,cuda
gpu|gpu|up|2-00:00:00|3|drained*|gpu:a100:4(S:0-1)|128|491520|x86,cuda
gpu-test|gpu-test|up|1:00:00|2|idle|gpu:a100:4(S:0-1)|128|491520|x86,cuda
largemem|largemem|up|2-00:00:00|20|idle~|(null)|256|4125696+|x86
closed|closed|inact|infinite|0|n/a|(null)|0|0|(null)"""

PARTITIONS_2311 = """\
PartitionName=cpu AllowGroups=ALL AllowAccounts=ALL AllowQos=default,short,test AllocNodes=ALL Default=YES QoS=N/A DefaultTime=NONE MaxTime=2-00:00:00 MinNodes=0 State=UP TotalCPUs=146432 TotalNodes=572 TRES=cpu=146432,mem=268435M,node=572
PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllowQos=default,short,test,dev AllocNodes=ALL Default=NO QoS=gpu_limits DefaultTime=NONE MaxTime=2-00:00:00 State=UP TotalCPUs=24704 TotalNodes=193 TRES=cpu=24704,mem=94863360M,node=193,gres/gpu=772,gres/gpu:a100=772
PartitionName=gpu-test AllowGroups=staff AllowAccounts=ALL AllowQos=ALL Default=NO MaxTime=01:00:00 State=UP TotalNodes=2 TRES=cpu=256,node=2,gres/gpu=8
PartitionName=largemem AllowGroups=ALL AllowAccounts=p200118 AllowQos=ALL Default=NO MaxTime=2-00:00:00 State=UP TotalNodes=20"""

CONFIG_2311 = """\
AccountingStorageEnforce = associations,limits,qos
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = mel
SelectType              = select/cons_tres
SLURM_VERSION           = 23.11.10"""

ASSOC = """\
mel|p200117||default,dev,short|default
mel|p200118||default,large|default
old|p200001||normal|normal"""

LFS = """\
Disk quotas for usr ada (uid 30117):
     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
  /mnt/tier2 33554432  104857600  104857600       -   98765  100000  100000       -
Disk quotas for grp ada (gid 30117):
     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
  /mnt/tier2 33554432       0       0       -   98765       0       0       -
Disk quotas for grp p200117 (gid 20117):
     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
  /mnt/tier1/with/a/name/that/is/so/long/that/it/has/a/line/of/its/own
                [1048576000*] 1073741824 1181116006 6d23h59m50s   12 1000000 1000000 -
uid 30117 is using default block quota setting
Disk quotas for prj 117 (pid 117):
     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
  /project/home/p200117 1024 0 1048576 - 5 0 0 -"""

PLACES = [
    (
        "place",
        "place=home|$HOME|/home/users/ada|/mnt/tier2/users/ada|1|lustre|9000000000|4000000000|10.0.0.1@o2ib:/t2|/mnt/tier2",
    ),
    (
        "place",
        "place=project|/project/home|/project/home/p200117|/mnt/tier2/project/p200117|1|lustre|9000000000|4000000000|10.0.0.1@o2ib:/t2|/mnt/tier2",
    ),
    (
        "place",
        "place=scratch|/project/scratch|/project/scratch/p200118|/mnt/tier1/project/p200118|1|lustre|500000000|250000000|10.0.0.2@o2ib:/t1|/mnt/tier1\nimage=/project/scratch/p200118/vllm-openai.sif",
    ),
    (
        "place",
        "place=scratch|$SCRATCH|/project/scratch/p200118|/mnt/tier1/project/p200118|1|lustre|500000000|250000000|10.0.0.2@o2ib:/t1|/mnt/tier1",
    ),
    ("place", "place=scratch|/scratch|/scratch/ada|/scratch/ada|0|xfs|500000000|250000000|/dev/sdb1|/scratch"),
]

MODULE_NAMES = """\
/apps/USE/easybuild/release/2024.1/modules/all:
Apptainer/1.2.4-GCCcore-13.2.0
Apptainer/1.3.6-GCCcore-13.3.0
CUDA/12.6.0(default)
Python/
Python/2.7.18-GCCcore-13.3.0-bare
Python/3.11.10-GCCcore-13.3.0
Python/3.12.3-GCCcore-13.3.0 (D)
Lmod has detected the following error: python is not python"""

LARGE = printed(
    [
        ("login", "sluice-path:/opt/slurm/bin:/usr/bin"),
        ("host", HOST),
        (
            "python",
            "python=/usr/bin/python3|3.6.8|1|1|/usr/libexec/platform-python3.6\npython=/usr/bin/python3.6|3.6.8|1|1|/usr/libexec/platform-python3.6",
        ),
        ("uv", ""),
        ("index", "url=https://pypi.org/simple/\nstatus=200"),
        ("slurm-version", "slurm 23.11.10"),
        ("sinfo", SINFO_2311),
        ("partitions", PARTITIONS_2311),
        ("config", CONFIG_2311),
        ("assoc", ASSOC),
        ("default-account", "p200118"),
        ("qos", "default|2-00:00:00\ndev|06:00:00\nlarge|"),
        ("assoc-cache", ("slurm_load_assoc_mgr_info error: Access/permission denied", "1")),
        ("sshare", "p200117|ada\np200118|ada"),
        (
            "modules",
            "lmod=8.7.32\ntmod=\nhome=/usr/share/lmod/lmod\ninit=/usr/share/lmod/lmod/init/bash\nversion=Modules based on Lua: Version 8.7.32",
        ),
        ("module-names", MODULE_NAMES),
        ("module-spider", "vLLM/0.11.2\nApptainer/1.3.6-GCCcore-13.3.0"),
        ("container", ""),
        *PLACES,
        ("lfs-quota", LFS),
        ("sessions", "manager=offline\nLinger=no\nbus=b true\nKillUserProcesses=no"),
        (
            "limits",
            "Limit                     Soft Limit           Hard Limit           Units     \nMax cpu time              3600                 3600                 seconds   \nMax processes             4096                 8192                 processes \nMax open files            1024                 524288               files     \nMax address space         unlimited            unlimited            bytes     ",
        ),
        ("cgroup", "memory.max=max\nmemory.max=34359738368\npids.max=2000"),
        ("installed", "installed=/home/users/ada/.sluicegate/bin/sluice|sluice 0.0.9"),
        ("orchestrator", "socket=/home/users/ada/.sluicegate/orchestrator.sock\nprocess=login02|4711|0|1"),
    ],
    before="Welcome to the supercomputer!\nQuota: 93 %\n",
)

# Slurm 22.05 without accounting, as the tests' own cluster prints it.
SINFO_2205 = "gpu|gpu*|up|2:00:00|2|idle|gpu:4|16|400000|(null)"
PARTITION_2205 = (
    "PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A "
    "DefaultTime=00:10:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED MaxTime=02:00:00 "
    "MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=node1,node2 PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO "
    "OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State=UP TotalCPUs=32 TotalNodes=2 SelectTypeParameters=NONE "
    "JobDefaults=(null) DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=32,mem=800000M,node=2,billing=32"
)
NO_ACCOUNTING = (
    "You are not running a supported accounting_storage plugin\nOnly 'accounting_storage/slurmdbd' is supported.",
    "1",
)
SMALL = printed(
    {
        "login": "sluice-path:/usr/bin\nplain-sinfo=/usr/bin/sinfo",
        "host": HOST,
        "python": "python=/usr/bin/python3|3.11.2|0|1|/usr/bin/python3.11",
        "slurm-version": "slurm-wlm 22.05.8",
        "sinfo": SINFO_2205,
        "partitions": PARTITION_2205,
        "config": "AccountingStorageEnforce = none\nAccountingStorageType   = accounting_storage/none\nClusterName             = sg\nSelectType              = select/cons_tres\nSLURM_VERSION           = 22.05.8",
        "assoc": NO_ACCOUNTING,
        "default-account": NO_ACCOUNTING,
        "qos": NO_ACCOUNTING,
        "assoc-cache": ("slurm_load_assoc_mgr_info error: Unspecified error", "1"),
        "sshare": ("sshare: error: You are not running a supported accounting_storage plugin", "1"),
        "place": "place=home|$HOME|/home/users/ada|/home/users/ada|1|ext4|264212084|76442336|/dev/vda|/",
    }
)

ASSOC_MGR_2411 = """\
Current Association Manager state

Association Records

ClusterName=hpc Account=root UserName= Partition= Priority=0 ID=1
    SharesRaw/Norm/Level/Factor=1/0.00/1/0.00
    DefAssoc=No
ClusterName=hpc Account=chem UserName=ada(30117) Partition= Priority=0 ID=12
    SharesRaw/Norm/Level/Factor=1/0.00/1/0.00
    DefAssoc=No
ClusterName=hpc Account=bio UserName=ada(30117) Partition=gpu Priority=0 ID=13
    DefAssoc=Yes
ClusterName=hpc Account=bio UserName=adam(30118) Partition= Priority=0 ID=14
    DefAssoc=Yes"""

# NFS with a grace that has begun, and none; as `quota -w` of Debian prints it.
QUOTA = """\
Disk quotas for user ada (uid 1000): 
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
nfs01:/export/home 10485760* 10000000 11000000   6days   12345       0       0        
/dev/sdb1     100       0       0             100      90     100   none"""

GPFS = """\
                         Block Limits                                               |     File Limits
Filesystem Fileset    type         KB      quota      limit   in_doubt    grace |    files   quota    limit in_doubt    grace  Remarks
gpfs0      root       USR       12345678   52428800   57671680          0     none |   123456 1000000  1100000        0     none hpc.cluster
gpfs0      root       GRP         no limits"""
