//! Ways in which a mock goes wrong, beside what it reports.

use std::time::Duration;

use super::EventFile;
use crate::{error::Error, scenario::raw::Behaviour};

/// Does what the script says for this step, if it says something else than a false report.
pub fn misbehave(behaviour: Behaviour, trial_id: &str, events: &mut EventFile) -> Result<(), Error> {
    let told = |r: std::io::Result<()>| {
        r.map_err(|e| Error::environment(e.to_string(), "event file").hint("check the disk"))
    };
    match behaviour {
        Behaviour::Crash => {
            eprintln!("the mock crashes, as its script says");
            std::process::abort();
        }
        Behaviour::Error => {
            Err(Error::usage("the mock fails, as its script says", "its script").hint("change the script"))
        }
        Behaviour::Hang => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        Behaviour::Garbage => told(events.line("the mock talks nonsense, as its script says")),
        Behaviour::PartialLine => {
            told(events.text("{\"event\": \"step\", \"st"))?;
            std::process::exit(0);
        }
        Behaviour::HugeOutput => {
            // One write of 12 MB.
            eprintln!("{}", "words without end\n".repeat(700_000));
            Ok(())
        }
        Behaviour::Flood => loop {
            told(events.text(&"no event\n".repeat(1000)))?;
        },
        Behaviour::Grandchild => daemon(),
        Behaviour::OutOfMemory => {
            eprintln!("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.");
            std::process::exit(1);
        }
        Behaviour::Killed => {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            Ok(())
        }
        Behaviour::BusyOnce if !trial_id.contains(".retry") => {
            eprintln!("CUDA error: all CUDA-capable devices are busy or unavailable");
            std::process::exit(1);
        }
        _ => Ok(()),
    }
}

/// Starts a process that leaves group and session, and tells its id.
fn daemon() -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::environment(e.to_string(), "setsid").hint("install util-linux");
    let child = std::process::Command::new("setsid").args(["sleep", "600"]).spawn().map_err(failed)?;
    eprintln!("left behind: {}", child.id());
    Ok(())
}
