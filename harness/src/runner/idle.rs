//! A GPU is left alone before a trial begins: no other program on it, neither hot nor throttled.

use std::time::{Duration, Instant};

use super::gpu::Gpu;
use crate::{error::Result, interrupt};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// Waits until the GPU is idle, and says so; after `limit`, what still keeps it from being so.
///
/// # Errors
/// Interrupted.
pub fn wait(gpu: Option<&Gpu>, limit: Duration, say: &dyn Fn(&str)) -> Result<Option<String>> {
    let Some(gpu) = gpu else { return Ok(None) };
    until_idle(&|| gpu.busy(), say, limit, INTERVAL)
}

fn until_idle(
    busy: &dyn Fn() -> Option<String>,
    say: &dyn Fn(&str),
    limit: Duration,
    interval: Duration,
) -> Result<Option<String>> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let Some(why) = busy() else { return Ok(None) };
        if interrupt::requested() {
            return Err(interrupt::error());
        }
        if begun.elapsed() >= limit {
            say(&format!("the GPU is still not idle: {why}; the trial begins, and is marked"));
            return Ok(Some(why));
        }
        if !told {
            say(&format!("waiting up to {:.0} s for an idle GPU: {why}", limit.as_secs_f64()));
            told = true;
        }
        std::thread::sleep(interval);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn waited(looks: u32) -> (Option<String>, Vec<String>) {
        let (left, said) = (Cell::new(looks), RefCell::new(Vec::new()));
        let busy = || {
            left.set(left.get().saturating_sub(1));
            (left.get() > 0).then(|| "another program is on it".to_string())
        };
        let say = |text: &str| said.borrow_mut().push(text.to_string());
        let (limit, interval) = (Duration::from_millis(50), Duration::from_millis(1));
        let why = until_idle(&busy, &say, limit, interval).unwrap();
        (why, said.into_inner())
    }

    #[test]
    fn an_idle_gpu_is_not_waited_for_and_a_busy_one_marks_the_trial() {
        assert_eq!(waited(1), (None, vec![]));
        let (why, said) = waited(4);
        assert_eq!((why, said.len()), (None, 1));
        let (why, said) = waited(u32::MAX);
        assert_eq!(why.as_deref(), Some("another program is on it"));
        assert!(said.len() == 2 && said[1].contains("marked"), "{said:?}");
    }
}
