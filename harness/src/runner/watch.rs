//! A child process watched from its start to its end.

use std::{os::unix::process::ExitStatusExt, path::Path, time::Duration};

use chronibench_protocol::record::{Exit, Line};

use super::{
    child::{self, Worker},
    gpu::Gpu,
    logs, memory,
    sample::Sampler,
    tail::Tail,
};
use crate::{error::Result, interrupt};

/// Follows `dir/events.jsonl` and looks at the process until it ends or is ended; every line goes to `collect`.
///
/// # Errors
/// The harness itself fails or is interrupted. A child that fails is an exit, not an error.
pub fn watch(
    worker: &mut Worker,
    dir: &Path,
    gpu: Option<&Gpu>,
    (limit, interval): (Duration, Duration),
    collect: &mut dyn FnMut(Line),
) -> Result<Exit> {
    let mut tail = Tail::new(&dir.join("events.jsonl"));
    let mut sampler = Sampler::new(worker.pid(), gpu)?;
    let mut next_look = Duration::ZERO;
    let (mut timed_out_after_s, mut ended_for) = (None, None);
    let kills = memory::kills();
    let status = loop {
        if interrupt::requested() {
            worker.end()?;
            return Err(interrupt::error());
        }
        if let Some(status) = worker.poll()? {
            break status;
        }
        let now = worker.elapsed();
        if now >= limit {
            timed_out_after_s = Some(limit.as_secs_f64());
            break worker.end()?;
        }
        tail.lines(now.as_nanos() as u64)?.into_iter().for_each(&mut *collect);
        ended_for = tail.flooded();
        if ended_for.is_some() {
            break worker.end()?;
        }
        logs::trim(dir)?;
        if now >= next_look {
            collect(Line::Sample(sampler.look(now)));
            next_look = now + interval;
        }
        std::thread::sleep(child::POLL);
    };
    let wall_ns = worker.elapsed().as_nanos() as u64;
    tail.rest(wall_ns)?.into_iter().for_each(&mut *collect);
    ended_for = ended_for.or(tail.flooded());
    Ok(Exit {
        code: status.code(),
        signal: status.signal(),
        timed_out_after_s,
        ended_for,
        oom_kills: memory::kills().zip(kills).map(|(now, then)| now.saturating_sub(then)),
        wall_ns,
        stderr_tail: child::stderr_tail(dir),
    })
}
