use chronicals_kernels::gpu::trace::Node;

use super::*;

const LIMITS: Limits = Limits { bytes_a_second: 1e12, flops_a_second: 1e14, product: "a product" };

fn kernel(name: &str) -> Call {
    Call {
        kind: CallKind::Kernel,
        seam: "norm",
        variant: "fused".into(),
        name: name.into(),
        cost: Some(Cost::bytes(1_000_000)),
        step: 0,
    }
}

fn product(name: &str) -> Call {
    let cost = Some(Cost { bytes: 10, flops: 200_000_000, flops_a_pair: 0 });
    Call { kind: CallKind::Product, seam: "gemm", variant: "library".into(), cost, ..kernel(name) }
}

fn fill(bytes: u64) -> Call {
    Call { kind: CallKind::Fill, seam: "memory", cost: Some(Cost::bytes(bytes)), ..kernel("fill") }
}

/// A µs each, half a µs apart.
fn seen(all: &[(Kind, &str, u64)]) -> Vec<Activity> {
    let activity = |(i, (kind, name, bytes)): (usize, &(Kind, &str, u64))| Activity {
        kind: *kind,
        name: name.to_string(),
        start_ns: 1500 * i as u64,
        end_ns: 1500 * i as u64 + 1000,
        stream: 7,
        node: Some(Node { launch: 1, number: i as u64 }),
        bytes: *bytes,
    };
    all.iter().enumerate().map(activity).collect()
}

fn kernels(names: &[&str]) -> Vec<Activity> {
    seen(&names.iter().map(|name| (Kind::Kernel, *name, 0)).collect::<Vec<_>>())
}

/// Names of calls, with whether each says a cost and is a part.
fn told(spans: &[Span]) -> Vec<(&str, &str, bool, bool)> {
    spans.iter().map(|s| (s.name.as_str(), s.kernel.as_str(), s.cost.is_some(), s.part)).collect()
}

#[test]
fn kernels_of_the_library_are_the_products_between_ours() {
    let calls = [product("a"), kernel("rmsnorm_forward"), product("b"), product("c"), kernel("adamw_clip")];
    let names = ["gemm_1", "rmsnorm_forward", "gemm_2", "gemm_3", "adamw_clip"];
    let out = attribute(&calls, kernels(&names)).unwrap();
    let told = told(&out.spans);
    let asked = ["a", "rmsnorm_forward", "b", "c", "adamw_clip"];
    let expected: Vec<_> = asked.into_iter().zip(names).map(|(a, b)| (a, b, true, false)).collect();
    assert_eq!(told, expected);
    assert!(out.notes.is_empty() && out.spans.iter().all(|s| s.stream == 7 && s.in_graph && s.ns() == 1000));
}

#[test]
fn a_second_kernel_is_a_part_of_its_product() {
    let calls = [product("a"), product("b"), kernel("rmsnorm_forward")];
    let names = ["gemm", "void cublasLt::splitKreduce_kernel<32, 16>", "gemm", "rmsnorm_forward"];
    let out = attribute(&calls, kernels(&names)).unwrap();
    let parts: Vec<_> =
        told(&out.spans).into_iter().map(|(name, _, cost, part)| (name, cost, part)).collect();
    assert_eq!(
        parts,
        [("a", true, false), ("a", false, true), ("b", true, false), ("rmsnorm_forward", true, false)]
    );
    assert!(out.notes.is_empty());

    // Products whose own kernels are called so, one each.
    let out = attribute(&calls, kernels(&["gemm", "gemm_splitK", "rmsnorm_forward"])).unwrap();
    assert!(out.spans.iter().all(|s| s.cost.is_some() && !s.part), "{:?}", out.spans);
}

#[test]
fn what_cannot_be_told_apart_is_said() {
    let calls = [product("a"), kernel("rmsnorm_forward"), product("b"), product("c")];
    let out = attribute(&calls, kernels(&["g1", "g2", "g3", "rmsnorm_forward", "g4", "g5"])).unwrap();
    let told = told(&out.spans);
    assert_eq!(
        told[..3].iter().map(|t| (t.0, t.2)).collect::<Vec<_>>(),
        [("g1", false), ("g2", false), ("g3", false)]
    );
    assert!(told[3..].iter().all(|t| t.2), "{told:?}");
    assert!(out.spans[..3].iter().all(|s| s.seam == "gemm"));
    assert!(
        out.notes.len() == 1 && out.notes[0].contains("3 kernels of the library for 1 products"),
        "{:?}",
        out.notes
    );
}

#[test]
fn other_kernels_than_were_asked_for_are_an_error() {
    let calls = [kernel("rmsnorm_forward"), kernel("adamw_clip")];
    for (names, words) in [
        (&["adamw_clip", "rmsnorm_forward"][..], "adamw_clip was seen where rmsnorm_forward was asked for"),
        (&["rmsnorm_forward"], "nothing was seen where adamw_clip"),
        (&["rmsnorm_forward", "adamw_clip", "adamw_clip"], "adamw_clip was seen, and not asked for"),
        (&["rmsnorm_forward", "gemm", "adamw_clip"], "gemm was seen where no product"),
        (&["rmsnorm_forward", "adamw_clip", "gemm"], "gemm was seen where no product"),
    ] {
        let e = attribute(&calls, kernels(names)).unwrap_err().to_string();
        assert!(e.contains(words) && e.contains("--profile-by events"), "{words} in {e}");
    }
}

#[test]
fn fills_are_known_by_their_bytes_and_copies_are_kept() {
    let activities = seen(&[
        (Kind::Copy, "copy from the host", 64),
        (Kind::Fill, "fill", 16),
        (Kind::Fill, "fill", 4096),
        (Kind::Kernel, "rmsnorm_forward", 0),
    ]);
    let out = attribute(&[fill(4096), kernel("rmsnorm_forward"), fill(8)], activities).unwrap();
    assert_eq!(out.copies.len(), 1);
    let fills: Vec<u64> = out.spans.iter().filter(|s| s.name == "fill").map(|s| s.start_ns).collect();
    assert_eq!(fills, [3000]);
    assert!(out.notes[0].contains("1 fills that nobody") && out.notes[1].contains("1 fills were not seen"));
}

fn at(call: Call, step: u32, start_ns: u64, end_ns: u64) -> Span {
    Span::of(&Call { step, ..call }, (start_ns, end_ns))
}

fn profile(spans: Vec<Span>, copies: Vec<Activity>) -> Result<Profile, Error> {
    let options = Options::fit(Some(1), 2, None, 0..3).unwrap();
    let (clock, device) = ("a clock".into(), "a device".into());
    let parts = Parts { by: By::Cupti, clock, device, limits: LIMITS, notes: Vec::new(), spans, copies };
    Profile::new(&options, parts)
}

fn two_steps() -> Vec<Span> {
    let none = Call { cost: None, ..kernel("mystery") };
    vec![
        at(kernel("rmsnorm_forward"), 0, 0, 1_000),
        at(kernel("rmsnorm_forward"), 1, 3_000, 5_000),
        // One µs at the limit of memory, two at that of products; both overlap for one.
        at(product("a"), 1, 4_000, 8_000),
        at(none, 1, 8_000, 9_000),
        at(kernel("rmsnorm_forward"), 2, 11_000, 13_000),
        at(product("a"), 2, 13_000, 17_000),
        at(kernel("mystery"), 2, 17_000, 19_000),
    ]
}

#[test]
fn a_table_adds_up() {
    let mut spans = two_steps();
    spans.iter_mut().filter(|s| s.name == "mystery").for_each(|s| s.cost = None);
    let copies = seen(&[(Kind::Copy, "copy from the host", 64), (Kind::Copy, "copy to the host", 64)]);
    let p = profile(spans, copies).unwrap();
    let steps: Vec<_> = p.steps.iter().map(|s| (s.step, s.start_ns, s.end_ns)).collect();
    assert_eq!(steps, [(1, 1_000, 9_000), (2, 9_000, 19_000)]);
    // The first copy began before the steps did.
    assert_eq!(p.spans.iter().filter(|s| s.seam == "memory").count(), 1);

    let t = Table::of(&p);
    assert_eq!(t.step_us, 9.0);
    assert_eq!([t.idle_us, t.overlap_us], [2.0, 0.5]);
    let [(gemm, _), (norm, rows)] = &t.seams[..] else { panic!("{t:?}") };
    assert_eq!((gemm.us, gemm.calls, gemm.of_limit()), (4.0, 1.0, Some(0.5)));
    assert_eq!(gemm.teraflops(), Some(50.0));
    assert_eq!((norm.us, norm.costed_us, norm.of_limit()), (3.5, 2.0, Some(0.5)));
    assert_eq!(norm.terabytes_a_second(), Some(0.5));
    assert_eq!(rows.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["rmsnorm_forward", "mystery"]);
    assert_eq!(t.without_cost, ["norm.fused.mystery"]);
    let text = p.markdown();
    assert!(text.contains("No model of bytes and FLOPs: norm.fused.mystery."), "{text}");
    assert!(
        text.contains("| norm | fused | rmsnorm_forward | 1.0 | 2.0 | 22.2 | 1.00 | – | 0.500 | – | 50 |"),
        "{text}"
    );
}

#[test]
fn a_kernel_of_which_some_calls_say_no_cost_is_named() {
    let p = profile(two_steps(), Vec::new()).unwrap();
    assert_eq!(Table::of(&p).without_cost, ["norm.fused.mystery (1 of 2)"]);
}

#[test]
fn a_step_of_which_nothing_was_seen_is_an_error() {
    let mut spans = two_steps();
    spans.retain(|s| s.step != 2);
    assert!(profile(spans, Vec::new()).unwrap_err().to_string().contains("profile of step 2"));
}

#[test]
fn steps_that_fit() {
    let fit = |warmup, steps, total| Options::fit(warmup, steps, None, 0..total).map(|o| (o.warmup, o.end()));
    assert_eq!(fit(None, 3, 100).unwrap(), (10, 13));
    assert_eq!(fit(None, 3, 8).unwrap(), (5, 8));
    assert_eq!(fit(Some(0), 8, 8).unwrap(), (0, 8));
    for (warmup, steps, total) in [(Some(6), 3, 8), (None, 9, 8), (None, 0, 8), (Some(u32::MAX), u32::MAX, 8)]
    {
        assert!(fit(warmup, steps, total).is_err(), "{warmup:?} {steps}");
    }
    // Of a training that goes on behind step 20 of 24.
    let rest = Options::fit(None, 3, None, 20..24).unwrap();
    assert_eq!((rest.warmup, rest.lead(), rest.begin(), rest.end()), (1, 20, 21, 24));
    assert!(!rest.keeps(19) && rest.keeps(20) && !rest.keeps(24));
    let e = Options::fit(None, 3, None, 24..24).unwrap_err().to_string();
    assert!(e.contains("0 steps of warm-up and 3 of profile in what is left of a training, 0"), "{e}");
}
