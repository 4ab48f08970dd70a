//! Two programs that take turns at the cases of a scenario.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use chronibench_analysis::gate::{
    CaseGate, GatePlan, judge,
    pairs::{self, BASELINE, CANDIDATE, on_side},
};
use chronibench_protocol::record::{Case, Comparison};

use super::output;
use crate::{
    environment,
    error::Result,
    expect::HfConfig,
    inputs::{self, Extent, Inputs},
    runner::{Bench, Turn, gpu::Gpu},
    scenario::Setup,
    store::Store,
};

/// A session in which two programs take turns.
pub struct Turns {
    setup: Setup,
    inputs: Inputs,
    expect: HfConfig,
    gpu: Option<Gpu>,
    store: Store,
}

impl Turns {
    /// Makes the run folder and what all trials share. `programs` are baseline and candidate.
    ///
    /// # Errors
    /// The folder cannot be written, or the scenario's inputs are unusable.
    pub fn start(setup: Setup, programs: (&Path, &Path), out: &Path) -> Result<Self> {
        let setup = two_sides(setup, programs);
        let expect = HfConfig::load(&setup.config)?;
        let gpu = Gpu::open().ok();
        let store =
            Store::create(out, &setup.resolved, &environment::describe(gpu.as_ref(), Some(&setup.file))?)?;
        eprintln!("preparing data, batches and starting weights");
        let inputs = inputs::prepare(&setup, &store.path("inputs"), Extent::Everything)?;
        Ok(Self { setup, inputs, expect, gpu, store })
    }

    /// The run folder.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// One gate, whose first round is `first`: rounds run until every case is decided. The cases as they stand then.
    ///
    /// # Errors
    /// The harness itself fails or is interrupted; what has run is stored.
    pub fn gate(&mut self, plan: &GatePlan, first: u32) -> Result<Vec<CaseGate>> {
        let mut open = plan.cases.clone();
        let mut pairs = 0;
        loop {
            let Some(next) = plan.design.next(pairs).filter(|_| !open.is_empty()) else {
                return self.look(plan, first..first + pairs);
            };
            for round in pairs..next {
                self.round(&open, first + round)?;
            }
            pairs = next;
            let looks = self.look(plan, first..first + pairs)?;
            looks.iter().filter(|c| open.contains(&c.case)).for_each(output::progress);
            open.retain(|case| looks.iter().any(|c| c.case == *case && !c.finished));
        }
    }

    fn look(&self, plan: &GatePlan, rounds: Range<u32>) -> Result<Vec<CaseGate>> {
        let summary = self.store.summary()?;
        let pair = |case: &String| pairs::live(&summary, case, rounds.clone());
        Ok(judge(plan, &plan.cases.iter().map(pair).collect::<Vec<_>>()).cases)
    }

    /// A pair of every case: baseline first in even rounds, candidate first in odd ones, so that neither side profits from a
    /// machine that becomes slower or faster.
    fn round(&mut self, cases: &[String], round: u32) -> Result<()> {
        let mut ids: Vec<String> = Vec::new();
        for case in cases {
            ids.extend([BASELINE, CANDIDATE].map(|side| on_side(side, case)));
        }
        if round % 2 == 1 {
            ids.reverse();
        }
        for id in ids {
            let case =
                self.setup.resolved.cases.iter().find(|c| c.id == id).expect("a side of a case").clone();
            self.trial(&case, round)?;
        }
        Ok(())
    }

    fn trial(&mut self, case: &Case, round: u32) -> Result<()> {
        let position = self.setup.resolved.order.len() as u32;
        let bench = Bench {
            setup: &self.setup,
            inputs: &self.inputs,
            expect: &self.expect,
            folder: self.store.folder(),
            gpu: self.gpu.as_ref(),
        };
        let turn = Turn { round, ..Turn::first(case, position) };
        self.store.add(&bench.run(turn, None, &mut |_| {})?)?;
        self.setup.resolved.order.push(case.id.clone());
        Ok(())
    }

    /// Removes what only a running run needs.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn finish(&self) -> Result<()> {
        self.inputs.delete_weights()?;
        self.store.clean()
    }
}

/// Every case twice, an arm for each side. The order grows as trials run, because nobody knows when the test is decided.
fn two_sides(mut setup: Setup, (baseline, candidate): (&Path, &Path)) -> Setup {
    let resolved = &mut setup.resolved;
    let side = |case: &Case, side: &str| Case {
        id: on_side(side, &case.id),
        arm: on_side(side, &case.arm),
        ablation: None,
        ..case.clone()
    };
    let cases = std::mem::take(&mut resolved.cases);
    resolved.comparisons = cases.iter().map(comparison).collect();
    resolved.cases = cases.iter().flat_map(|c| [side(c, BASELINE), side(c, CANDIDATE)]).collect();
    resolved.order.clear();
    // A gate asks how fast, not whether: no trial of it is audited.
    resolved.audit = None;
    let scripts = std::mem::take(&mut setup.scripts);
    for (arm, script) in scripts {
        for side in [BASELINE, CANDIDATE] {
            setup.scripts.insert(on_side(side, &arm), script.clone());
        }
    }
    for case in &cases {
        for (side, program) in [(BASELINE, baseline), (CANDIDATE, candidate)] {
            setup.programs.insert(on_side(side, &case.arm), PathBuf::from(program));
        }
    }
    setup
}

fn comparison(case: &Case) -> Comparison {
    Comparison {
        label: format!("candidate against baseline, {}", case.id),
        case: on_side(CANDIDATE, &case.id),
        against: on_side(BASELINE, &case.id),
        target: None,
        declared_differences: Vec::new(),
    }
}
