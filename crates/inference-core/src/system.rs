//! Memory that the system can still give to this process.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// Bytes of memory that this process can still get, where the system tells: Linux does.
///
/// It is the least of what the machine has available (`MemAvailable`), what the process's own limits leave
/// (`RLIMIT_AS`, `RLIMIT_DATA`), and what each control group above the process leaves (version 1 and version 2).
#[must_use]
pub fn free_memory() -> Option<u64> {
    System { root: Path::new("/") }.free_memory()
}

/// The files in which Linux describes memory, below `root`: `/`, but for tests.
struct System<'a> {
    root: &'a Path,
}

impl System<'_> {
    fn free_memory(&self) -> Option<u64> {
        let machine = self.read("proc/meminfo").and_then(|text| kilobytes(&text, "MemAvailable:"));
        machine.into_iter().chain(self.process_limits()).chain(self.control_groups()).min()
    }

    /// What the process's own limits leave.
    fn process_limits(&self) -> Vec<u64> {
        let (Some(limits), Some(status)) = (self.read("proc/self/limits"), self.read("proc/self/status"))
        else {
            return Vec::new();
        };
        let left = |limit: &str, used: &str| {
            let soft = limits.lines().find_map(|line| line.strip_prefix(limit))?.split_whitespace().next()?;
            // Without a limit it says `unlimited`.
            Some(soft.parse::<u64>().ok()?.saturating_sub(kilobytes(&status, used)?))
        };
        [left("Max address space", "VmSize:"), left("Max data size", "VmData:")]
            .into_iter()
            .flatten()
            .collect()
    }

    /// What the memory limits of this process's control group and of those above it leave.
    fn control_groups(&self) -> Vec<u64> {
        let (Some(own), Some(mounts)) = (self.read("proc/self/cgroup"), self.read("proc/self/mountinfo"))
        else {
            return Vec::new();
        };
        let mut left = Vec::new();
        for mount in mounts.lines().filter_map(Mount::parse) {
            let Some(path) = own.lines().find_map(|line| mount.path_in(line)) else { continue };
            let top = self.below_root(&mount.point);
            let mut folder = top.join(path);
            while folder.starts_with(&top) {
                left.extend(mount.version.left(&folder));
                if !folder.pop() {
                    break;
                }
            }
        }
        left
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }

    fn below_root(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Where a hierarchy of control groups that limits memory is mounted.
struct Mount {
    version: Version,
    /// The group that the mount shows at its top.
    root: PathBuf,
    point: PathBuf,
}

#[derive(Clone, Copy, PartialEq)]
enum Version {
    One,
    Two,
}

impl Mount {
    /// A line of `/proc/self/mountinfo`: `id parent device root point options … - type source options`.
    fn parse(line: &str) -> Option<Self> {
        let (fields, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let version = match kind.next()? {
            "cgroup2" => Version::Two,
            "cgroup" if kind.nth(1)?.split(',').any(|option| option == "memory") => Version::One,
            _ => return None,
        };
        let mut fields = fields.split(' ').skip(3).map(|field| PathBuf::from(unescape(field)));
        Some(Self { version, root: fields.next()?, point: fields.next()? })
    }

    /// This process's group below the mount, by a line of `/proc/self/cgroup`: `id:controllers:path`.
    fn path_in(&self, line: &str) -> Option<PathBuf> {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, Path::new(fields.next()?));
        let ours = match self.version {
            Version::One => controllers.split(',').any(|controller| controller == "memory"),
            Version::Two => id == "0" && controllers.is_empty(),
        };
        // A group outside the mount is not visible: its top is the nearest that is.
        let below = path.strip_prefix(&self.root).unwrap_or(Path::new(""));
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        ours.then(|| if plain { below.to_owned() } else { PathBuf::new() })
    }
}

impl Version {
    /// What the limit of one group leaves, where it has one. Cached files count as free: the kernel drops them first.
    fn left(self, group: &Path) -> Option<u64> {
        let [limit, usage, files] = match self {
            Self::One => ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_"],
            Self::Two => ["memory.max", "memory.current", ""],
        };
        let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
        // Version 2 says `max` where there is no limit.
        let (limit, usage) = (number(limit)?, number(usage)?);
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let cached = |kind: &str| {
            let name = format!("{files}{kind}_file ");
            stat.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let used = usage.saturating_sub(cached("inactive")).saturating_sub(cached("active"));
        Some(limit.saturating_sub(used))
    }
}

/// The bytes of a line `name 12 kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A path of `/proc/self/mountinfo`, which writes a space as `\040`.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                path.push(char::from(code));
                path.push_str(&part[3..]);
            }
            None => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine with 1,000 MiB available and a process of 100 MiB, and these files.
    fn free(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        let basics = [
            ("proc/meminfo", "MemTotal:       24629060 kB\nMemFree: 1 kB\nMemAvailable:   1024000 kB\n"),
            ("proc/self/status", "Name:\tx\nVmSize:\t  102400 kB\nVmData:\t   51200 kB\n"),
        ];
        for (name, text) in basics.iter().chain(files) {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        System { root: root.path() }.free_memory()
    }

    #[test]
    fn linux_tells_what_is_available() {
        assert_eq!(free(&[]), Some(1000 * MIB));
        assert_eq!(System { root: Path::new("/nowhere") }.free_memory(), None);
        assert_eq!(kilobytes("MemTotal: 1 kB", "MemAvailable:"), None);
        assert!(cfg!(not(target_os = "linux")) || free_memory().is_some_and(|bytes| bytes > MIB));
    }

    #[test]
    fn limits_of_the_process_count_what_it_has_already() {
        let limits = |data: &str, space: &str| {
            let text = format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max data size             {data}            unlimited            bytes     \n\
                 Max address space         {space}            unlimited            bytes     \n"
            );
            free(&[("proc/self/limits", &text)])
        };
        assert_eq!(limits("unlimited", "unlimited"), Some(1000 * MIB));
        assert_eq!(limits("unlimited", "314572800"), Some(200 * MIB));
        assert_eq!(limits("314572800", "unlimited"), Some(250 * MIB));
        assert_eq!(limits("1", "314572800"), Some(0));
    }

    #[test]
    fn the_tightest_group_of_version_2_counts_and_its_cached_files_do_not() {
        let mount = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "0::/user.slice/app\n";
        let group = |max: &'static str, outer: &'static str| {
            free(&[
                ("proc/self/mountinfo", mount),
                ("proc/self/cgroup", own),
                ("sys/fs/cgroup/user.slice/app/memory.max", max),
                ("sys/fs/cgroup/user.slice/app/memory.current", "209715200\n"),
                (
                    "sys/fs/cgroup/user.slice/app/memory.stat",
                    "anon 5\ninactive_file 52428800\nactive_file 52428800\n",
                ),
                ("sys/fs/cgroup/user.slice/memory.max", outer),
                ("sys/fs/cgroup/user.slice/memory.current", "314572800\n"),
            ])
        };
        assert_eq!(group("max\n", "max\n"), Some(1000 * MIB));
        assert_eq!(group("524288000\n", "max\n"), Some(400 * MIB));
        assert_eq!(group("524288000\n", "419430400\n"), Some(100 * MIB));
        assert_eq!(group("1\n", "max\n"), Some(0));
    }

    #[test]
    fn groups_of_version_1_are_found_through_their_mount() {
        let files = |root: &str, own: &str| {
            let mount = format!(
                "35 31 0:32 {root} /sys/fs/cgroup/memory\\040all rw,relatime - cgroup cgroup rw,memory\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
            );
            let own = format!("5:cpu,cpuacct:/other\n4:memory:{own}\n0::/\n");
            free(&[
                ("proc/self/mountinfo", &mount),
                ("proc/self/cgroup", &own),
                ("sys/fs/cgroup/memory all/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory all/memory.usage_in_bytes", "5\n"),
                ("sys/fs/cgroup/memory all/job/memory.limit_in_bytes", "524288000\n"),
                ("sys/fs/cgroup/memory all/job/memory.usage_in_bytes", "314572800\n"),
                ("sys/fs/cgroup/memory all/job/memory.stat", "total_inactive_file 104857600\n"),
            ])
        };
        assert_eq!(files("/", "/job"), Some(300 * MIB));
        assert_eq!(files("/", "/job/inner"), Some(300 * MIB));
        assert_eq!(files("/docker/1", "/docker/1/job"), Some(300 * MIB));
        // Outside the mount the group itself is not visible.
        assert_eq!(files("/docker/1", "/elsewhere/job"), Some(1000 * MIB));
        assert_eq!(files("/", "/../../job"), Some(1000 * MIB));
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\9zé\"), r"/a\9zé\");
    }
}
