//! A certificate is for gates of the design that was played, and of no other.

use chronibench_analysis::{
    gate::{Certificate, Enforce, GatePlan, GateReport, Program, SCHEMA, certify, judge},
    sequential::Design,
};
use serde_json::{Value, json};

/// A certificate of so many cases whose comparisons of a program with itself moved by a tenth of a percent.
fn certificate(design: &Design, cases: usize) -> Certificate {
    let comparison = |i: usize| -> Vec<f64> {
        (0..12).map(|k| 1.0 + 1e-3 * f64::from(u8::from((i + k).is_multiple_of(2))) - 5e-4).collect()
    };
    let comparisons: Vec<Vec<f64>> = (0..20).map(comparison).collect();
    let names = (0..cases).map(|i| format!("case {i}"));
    let (noise, why_not): (Vec<_>, Vec<Vec<String>>) =
        names.map(|name| certify(design, &name, &comparisons)).unzip();
    Certificate {
        schema: "chronibench.noise/1".into(),
        scenario: "any".into(),
        key: "key".into(),
        machine: "a machine".into(),
        made_at: "2026-01-01T00:00:00Z".into(),
        alpha: design.alpha,
        min_effect: Some(design.min_effect),
        looks: Some(design.looks.clone()),
        cases: noise,
        why_not: why_not.concat(),
    }
}

/// As certificates were before they had a design.
fn older(certificate: &Certificate) -> Certificate {
    let Value::Object(mut fields) = json!(certificate) else { panic!("a certificate is an object") };
    assert!(fields.remove("looks").is_some() && fields.remove("min_effect").is_some());
    serde_json::from_value(fields.into()).unwrap()
}

fn gate(certificate: &Certificate, design: Design, cases: usize) -> GateReport {
    let plan = GatePlan {
        schema: SCHEMA.into(),
        scenario: "any".into(),
        baseline: Program::default(),
        candidate: Program::default(),
        design,
        cases: (0..cases).map(|i| format!("case {i}")).collect(),
        enforce: Enforce::Certified,
        certificate: Some(certificate.clone()),
        advisory: Vec::new(),
        uncertified: None,
    };
    judge(&plan, &[])
}

fn planned(cases: usize) -> Design {
    Design::default().for_cases(cases).unwrap()
}

#[test]
fn a_stricter_or_another_design_than_the_certificates_is_advice() {
    let short = Design { min_effect: 0.4, looks: vec![4], ..Design::default() };
    let weak = certificate(&short, 1);
    assert!(weak.is_certified(), "{:?}", weak.why_not);
    assert!(gate(&weak, short.clone(), 1).enforced);
    let usual = gate(&weak, Design::default(), 1);
    let why = usual.advisory.join("; ");
    assert!(!usual.enforced && why.contains("losses of 40.00 % and more, the gate asks for 1.50 %"), "{why}");
    assert!(why.contains("looks after 4 pairs, the gate looks after 4, 6, 8, 12"), "{why}");
    let full = certificate(&Design::default(), 1);
    assert!(
        gate(&full, Design { min_effect: 0.03, ..Design::default() }, 1).enforced,
        "a larger effect is covered"
    );
    assert!(!gate(&full, Design { min_effect: 0.01, ..Design::default() }, 1).enforced);
    assert!(!gate(&full, Design { looks: vec![4, 6, 8], ..Design::default() }, 1).enforced);
    assert!(!weak.replaces(&full) && full.replaces(&weak) && full.replaces(&full));
}

#[test]
fn looks_that_the_number_of_cases_puts_off_are_no_other_design() {
    let three = certificate(&planned(3), 3);
    assert_eq!(planned(3).looks, [4, 6, 10, 12]);
    for cases in 1..=3 {
        let report = gate(&three, planned(cases), cases);
        assert!(report.enforced, "{cases}: {:?}", report.advisory);
    }
}

#[test]
fn a_certificate_without_a_design_is_of_the_default() {
    for cases in [1, 3] {
        let old = older(&certificate(&planned(cases), cases));
        assert_eq!(old.design(), planned(cases));
        assert!(gate(&old, planned(cases), cases).enforced);
        assert!(!gate(&old, Design { looks: vec![4], ..Design::default() }, cases).enforced);
    }
}
