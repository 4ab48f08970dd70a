//! `chronibench noise`: this program against itself, as often as it takes to know what a gate here would say.

use chronibench_analysis::gate::{
    CERTIFICATE_SCHEMA, Certificate, Enforce, GatePlan, Noise, SCHEMA, certify,
};

use super::{args::NoiseArgs, baseline::Side, certificate, output, turns::Turns};
use crate::{
    error::{Error, Exit, Result},
    interrupt, session,
    store::{Store, pretty},
};

/// Runs the comparisons and keeps the certificate.
///
/// # Errors
/// The scenario is unusable, or a trial is not valid.
pub fn run(args: &NoiseArgs) -> Result<Exit> {
    let setup = session::ready(&args.cases.of(args.scenario.clone()))?;
    let design = args.test.design(setup.resolved.cases.len())?;
    interrupt::install();
    let key = certificate::key(&setup)?;
    let name = setup.resolved.name.clone();
    let this = Side::this()?;
    let plan = GatePlan {
        schema: SCHEMA.into(),
        scenario: name.clone(),
        baseline: this.about.clone(),
        candidate: this.about.clone(),
        design,
        cases: setup.resolved.cases.iter().map(|c| c.id.clone()).collect(),
        enforce: Enforce::Never,
        certificate: None,
        advisory: Vec::new(),
        uncertified: None,
    };
    let out = args.out.clone().unwrap_or_else(|| super::folder("noise", &name));
    let mut turns = Turns::start(setup, (&this.path, &this.path), &out)?;
    let compared = comparisons(&mut turns, &plan, args.comparisons);
    turns.finish()?;
    Store::open(&out)?.publish()?;
    let ratios = match compared {
        Err(e) if e.exit == Exit::Interrupted => {
            eprintln!("interrupted; the finished trials are in {}", out.display());
            return Ok(Exit::Interrupted);
        }
        other => other?,
    };
    let certificate = certificate(&plan, key, &ratios)?;
    let text = pretty(&serde_json::to_value(&certificate).expect("plain data"));
    turns.store().seal("certificate.json", &text)?;
    // The results have the evidence in them.
    Store::open(&out)?.publish()?;
    let path = certificate::save(&certificate)?;
    output::grid(table(&certificate));
    for why in &certificate.why_not {
        println!("not certified: {why}");
    }
    match path {
        Some(path) => println!("certificate: {}", path.display()),
        None => println!("the certificate from before stays: it certifies what this one does not"),
    }
    Ok(if certificate.is_certified() { Exit::Pass } else { Exit::Inconclusive })
}

/// Ratios of every case: one list a comparison.
fn comparisons(turns: &mut Turns, plan: &GatePlan, times: u32) -> Result<Vec<Vec<Vec<f64>>>> {
    let rounds = plan.design.looks.last().copied().expect("a design has looks");
    let mut ratios = vec![Vec::new(); plan.cases.len()];
    for comparison in 0..times {
        eprintln!("comparison {}/{times}", comparison + 1);
        for (own, case) in ratios.iter_mut().zip(turns.gate(plan, comparison * rounds)?) {
            if let Some(reason) = case.reasons.first() {
                return Err(Error::new(Exit::NotValid, reason.clone(), case.case)
                    .hint("no certificate comes from trials that are not valid: mend the cause first"));
            }
            own.push(case.ratios);
        }
    }
    Ok(ratios)
}

fn certificate(plan: &GatePlan, key: String, ratios: &[Vec<Vec<f64>>]) -> Result<Certificate> {
    let judged = plan.cases.iter().zip(ratios).map(|(case, own)| certify(&plan.design_of(case), case, own));
    let (cases, why_not): (Vec<Noise>, Vec<Vec<String>>) = judged.unzip();
    Ok(Certificate {
        schema: CERTIFICATE_SCHEMA.into(),
        scenario: plan.scenario.clone(),
        key,
        machine: certificate::machine_words()?,
        made_at: jiff::Timestamp::now().to_string(),
        alpha: plan.design.alpha,
        min_effect: Some(plan.design.min_effect),
        looks: Some(plan.design.looks.clone()),
        cases,
        why_not: why_not.concat(),
    })
}

fn table(certificate: &Certificate) -> Vec<Vec<String>> {
    let percent = |x: f64| format!("{:.2} %", x * 100.0);
    let head = [
        "case",
        "A/A",
        "alarms",
        "passed",
        "pairs",
        "sd of a pair",
        "|Δ| median",
        "|Δ| 95 %",
        "resampled alarms",
    ];
    let row = |n: &Noise| {
        vec![
            n.case.clone(),
            n.comparisons.to_string(),
            n.alarms.to_string(),
            n.passed.to_string(),
            n.pairs.to_string(),
            percent(n.pair_sd),
            percent(n.p50_change),
            percent(n.p95_change),
            percent(n.resampled_alarms),
        ]
    };
    [head.map(String::from).to_vec()].into_iter().chain(certificate.cases.iter().map(row)).collect()
}
