//! What a lying arm says: the events of an honest training with the lying one's times, or times and counts of its own.

use std::{io, time::Duration};

use chronibench_protocol::{
    Event,
    event::{Phase, Step},
};

use super::Emit;
use crate::scenario::cheat::Cheat;

/// Whether it tells the log of an honest training. The others tell what they did, but for the one thing that they lie about.
pub fn forges(cheat: Cheat) -> bool {
    !matches!(
        cheat,
        Cheat::EarlyClock
            | Cheat::AsynchronousTimer
            | Cheat::PaddingCounted
            | Cheat::ReplayedEvents
            | Cheat::CopiedWeights
            | Cheat::KeptBack
            | Cheat::RefusedRow
            | Cheat::OwnLog
    )
}

/// How long a step of a lying clock really takes more.
const HIDDEN: Duration = Duration::from_millis(100);

/// Changes events on their way to the harness.
pub struct Teller {
    cheat: Cheat,
    honest: std::vec::IntoIter<Event>,
}

impl Teller {
    /// Will tell `honest` in place of what is trained, where there is any.
    pub fn new(cheat: Cheat, honest: Vec<Event>) -> Self {
        Self { cheat, honest: honest.into_iter() }
    }

    /// Tells one event.
    pub fn tell(&mut self, event: Event, emit: Emit<'_>) -> io::Result<()> {
        let event = match self.honest.next() {
            Some(honest) => dressed(event, honest),
            None => self.embellished(event),
        };
        emit(event)
    }

    fn embellished(&self, event: Event) -> Event {
        let hides = matches!(self.cheat, Cheat::EarlyClock | Cheat::AsynchronousTimer);
        match event {
            Event::Step(s) if self.cheat == Cheat::PaddingCounted => {
                let mut s = s;
                s.tokens.real = s.tokens.slots;
                Event::Step(s)
            }
            Event::Step(s) if hides => {
                // The work goes on where the clock does not look.
                if s.phase == Phase::Timed {
                    std::thread::sleep(HIDDEN);
                }
                Event::Step(Step {
                    start_ns: self.time(s.start_ns, s.step),
                    end_ns: self.time(s.end_ns, s.step + 1),
                    ..s
                })
            }
            Event::Window(mut w) if hides => {
                w.start_ns = self.time(w.start_ns, w.first_step);
                w.end_ns = self.time(w.end_ns, w.last_step + 1);
                Event::Window(w)
            }
            other => other,
        }
    }

    /// A clock that runs at a tenth of its speed; or one that stops while the device works, a millisecond a step.
    fn time(&self, ns: u64, edge: u32) -> u64 {
        match self.cheat {
            Cheat::EarlyClock => ns / 10,
            _ => u64::from(edge) * 1_000_000,
        }
    }
}

/// An honest event at the time of a lying one.
fn dressed(event: Event, honest: Event) -> Event {
    match (event, honest) {
        (Event::Step(s), Event::Step(h)) => Event::Step(Step { start_ns: s.start_ns, end_ns: s.end_ns, ..h }),
        (Event::Done(d), Event::Done(mut h)) => {
            h.weights = d.weights;
            Event::Done(h)
        }
        (Event::Window(w), _) => Event::Window(w),
        (_, honest) => honest,
    }
}
