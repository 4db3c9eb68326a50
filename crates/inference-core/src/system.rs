//! What the system says about itself.

/// Bytes of memory that the system can still give, where it tells: Linux does.
#[must_use]
pub fn free_memory() -> Option<u64> {
    std::fs::read_to_string("/proc/meminfo").ok().and_then(|meminfo| available(&meminfo))
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_what_is_available() {
        let text = "MemTotal:       24629060 kB\nMemFree: 1 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(available(text), Some(23_000_000 * 1024));
        assert_eq!(available("MemTotal: 1 kB"), None);
    }
}
