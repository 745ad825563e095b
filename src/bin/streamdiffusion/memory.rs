//! Memory that is there to be used.

/// Bytes that can be used without the system running short, where it can be told: what the kernel says, and what is
/// left of the limit of the process's control group, as containers have one.
pub fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let system = from_meminfo(&read("/proc/meminfo")?)?;
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(most, used)| most.saturating_sub(used));
    Some(group.map_or(system, |group| group.min(system)))
}

fn from_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:    1024 kB\nBuffers: 1 kB\n";
        assert_eq!(from_meminfo(text), Some(1 << 20));
        assert_eq!(from_meminfo("MemTotal: 1 kB\n"), None);
        assert_eq!(from_meminfo("MemAvailable: much kB\n"), None);
    }
}
