//! Whether the kernel killed something for want of memory.

/// Processes that the kernel has killed so in the harness's control group, which its children are in too; `None` where it does not count
/// them (no control groups of version 2).
pub fn kills() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let events = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.events")).ok()?;
    count(&events)
}

fn count(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_count_is_that_of_kills() {
        let events = "low 0\nhigh 1\nmax 7\noom 5\noom_kill 3\noom_group_kill 2\n";
        assert_eq!(super::count(events), Some(3));
        assert_eq!(super::count(""), None);
    }
}
