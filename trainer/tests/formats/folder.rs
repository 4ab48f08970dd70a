//! Folders of models: shards, rounding, adapters merged.

use chronicals::formats::{
    folder::{Adapter, Source, Style},
    write::Stored,
};

use super::{assert_same, golden, llama, open};

pub const F32: Style = Style { stored: Stored::F32, shard: u64::MAX };
const BF16: Style = Style { stored: Stored::Bf16, shard: u64::MAX };

#[test]
fn shards_hold_what_one_file_holds() {
    let dir = llama();
    let source = Source::open(&dir.path().join("model"), None).unwrap();
    let whole = open(&golden("llama/model.safetensors"));
    for shard in [1, 10_000, 40_000] {
        let out = dir.path().join(format!("of-{shard}"));
        source.write(None, Style { shard, ..F32 }, &out).unwrap();
        assert_same(&*open(&out), &*whole);
        let names: Vec<String> =
            out.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let shards = names.iter().filter(|n| n.starts_with("model-") && n.ends_with(".safetensors"));
        assert!(shards.clone().count() > 1, "{names:?}");
        // A shard is above the limit only where a single tensor is.
        for shard_file in shards {
            let size = std::fs::metadata(out.join(shard_file)).unwrap().len();
            assert!(size < shard.max(96 * 32 * 4) + 4096, "{shard_file}: {size}");
        }
    }
}

#[test]
fn bf16_is_rounded_once_and_said_in_the_config() {
    let dir = llama();
    let out = dir.path().join("out");
    Source::open(&dir.path().join("model"), None).unwrap().write(None, BF16, &out).unwrap();
    let (exact, rounded) = (open(&golden("llama/model.safetensors")), open(&out));
    for name in exact.names() {
        for (x, r) in exact.read(name).unwrap().iter().zip(rounded.read(name).unwrap()) {
            assert_eq!(half::bf16::from_f32(*x).to_f32(), r, "{name}");
        }
    }
    let config = std::fs::read_to_string(out.join("config.json")).unwrap();
    assert!(config.contains(r#""torch_dtype": "bfloat16""#), "{config}");
    // Once more changes nothing.
    let again = dir.path().join("again");
    Source::open(&out, None).unwrap().write(None, BF16, &again).unwrap();
    assert_same(&*rounded, &*open(&again));
}

#[test]
fn merging_adds_scale_b_a() {
    let dir = llama();
    let source = Source::open(&dir.path().join("model"), None).unwrap();
    let adapter = Adapter::open(&dir.path().join("adapter"), source.model()).unwrap();
    let out = dir.path().join("merged");
    source.write(Some(&adapter), F32, &out).unwrap();
    let (base, merged) = (open(&dir.path().join("model")), open(&out));
    let adapters = open(&dir.path().join("adapter/adapter_model.safetensors"));
    let mut touched = 0;
    for name in base.names() {
        let (w, m) = (base.read(name).unwrap(), merged.read(name).unwrap());
        let of = |ab: &str| {
            let name = format!("base_model.model.{}.lora_{ab}.weight", name.trim_end_matches(".weight"));
            adapters.shape(&name).map(|_| adapters.read(&name).unwrap())
        };
        let (Some(a), Some(b)) = (of("A"), of("B")) else {
            assert_eq!(w, m, "{name}");
            continue;
        };
        touched += 1;
        let (r, inputs) = (4, base.shape(name).unwrap()[1]);
        for (i, (w, m)) in w.iter().zip(m).enumerate() {
            let (row, column) = (i / inputs, i % inputs);
            let product: f64 =
                (0..r).map(|k| f64::from(b[row * r + k]) * f64::from(a[k * inputs + column])).sum();
            let expected = f64::from(*w) + 8.0 / 4.0 * product;
            assert!((f64::from(m) - expected).abs() < 1e-6, "{name}[{i}]: {m} for {expected}");
        }
    }
    assert_eq!(touched, 14);
}

#[test]
fn a_place_that_is_taken_is_left_alone() {
    let dir = llama();
    let source = Source::open(&dir.path().join("model"), None).unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine.txt"), "mine").unwrap();
    let e = source.write(None, F32, &out).unwrap_err().to_string();
    assert!(e.contains("something here already"), "{e}");
    assert_eq!(std::fs::read_to_string(out.join("mine.txt")).unwrap(), "mine");
    std::fs::remove_file(out.join("mine.txt")).unwrap();
    source.write(None, F32, &out).unwrap();
}

#[test]
fn a_failure_halfway_leaves_nothing() {
    let dir = llama();
    let model = dir.path().join("model");
    let source = Source::open(&model, None).unwrap();
    // The file shrinks between the check and the reading.
    let weights = model.join("model.safetensors");
    let length = std::fs::metadata(&weights).unwrap().len();
    std::fs::File::options().write(true).open(&weights).unwrap().set_len(length - 400).unwrap();
    let out = dir.path().join("out");
    let e = source.write(None, F32, &out).unwrap_err().to_string();
    assert!(e.contains("model.safetensors"), "{e}");
    let left: Vec<_> = dir.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// Rows of `W + s·B·A` have the lengths that DoRA gives them, and their directions.
#[test]
fn merging_gives_rows_their_magnitudes() {
    let dir = llama();
    let folder = golden("lora/dora");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("qwen3").join(name), dir.path().join("model").join(name)).unwrap();
    }
    let source = Source::open(&dir.path().join("model"), None).unwrap();
    let adapter = Adapter::open(&folder, source.model()).unwrap();
    let out = dir.path().join("merged");
    source.write(Some(&adapter), F32, &out).unwrap();
    let (base, merged, adapters) = (open(&dir.path().join("model")), open(&out), open(&folder));
    let module = "model.layers.1.mlp.down_proj";
    let part = |name: &str| adapters.read(&format!("base_model.model.{module}.{name}")).unwrap();
    let (a, b, magnitudes) = (part("lora_A.weight"), part("lora_B.weight"), part("lora_magnitude_vector"));
    let weight = format!("{module}.weight");
    let [w, m] = [&base, &merged].map(|file| file.read(&weight).unwrap());
    let inputs = base.shape(&weight).unwrap()[1];
    for (row, magnitude) in magnitudes.iter().enumerate() {
        let v: Vec<f64> = (0..inputs)
            .map(|k| {
                let product: f64 =
                    (0..4).map(|i| f64::from(b[row * 4 + i]) * f64::from(a[i * inputs + k])).sum();
                f64::from(w[row * inputs + k]) + 2.0 * product
            })
            .collect();
        let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (k, v) in v.iter().enumerate() {
            let (got, want) = (f64::from(m[row * inputs + k]), f64::from(*magnitude) * v / length);
            assert!((got - want).abs() < 1e-6, "row {row}: {got} for {want}");
        }
    }
}

/// Ranks and scales of their own are in the adapter's settings, and in the sum.
#[test]
fn merging_honours_patterns() {
    let dir = llama();
    let folder = golden("lora/patterns");
    std::fs::copy(golden("qwen3/config.json"), dir.path().join("model/config.json")).unwrap();
    std::fs::copy(golden("qwen3/model.safetensors"), dir.path().join("model/model.safetensors")).unwrap();
    let source = Source::open(&dir.path().join("model"), None).unwrap();
    let adapter = Adapter::open(&folder, source.model()).unwrap();
    let out = dir.path().join("merged");
    source.write(Some(&adapter), F32, &out).unwrap();
    let (base, merged, adapters) = (open(&dir.path().join("model")), open(&out), open(&folder));
    // Rank and scale as PEFT's matching gives them for these modules; alpha is 8 where no pattern is about it.
    for (module, r, scale) in [
        ("model.layers.0.self_attn.k_proj", 2, 4.0),
        ("model.layers.0.self_attn.q_proj", 4, 0.25),
        ("model.layers.1.self_attn.q_proj", 8, 0.25),
        ("model.layers.1.self_attn.v_proj", 4, 0.5),
        ("model.layers.0.mlp.gate_proj", 6, 8.0 / 6.0),
        ("model.layers.0.mlp.up_proj", 4, 2.0),
    ] {
        let weight = format!("{module}.weight");
        let [w, m] = [&base, &merged].map(|file| file.read(&weight).unwrap());
        let [a, b] = ["A", "B"]
            .map(|ab| adapters.read(&format!("base_model.model.{module}.lora_{ab}.weight")).unwrap());
        let inputs = base.shape(&weight).unwrap()[1];
        assert_eq!(a.len(), r * inputs, "{module}");
        for (i, (w, m)) in w.iter().zip(m).enumerate() {
            let (row, column) = (i / inputs, i % inputs);
            let product: f64 =
                (0..r).map(|k| f64::from(b[row * r + k]) * f64::from(a[k * inputs + column])).sum();
            let expected = f64::from(*w) + scale * product;
            assert!((f64::from(m) - expected).abs() < 1e-6, "{weight}[{i}]: {m} for {expected}");
        }
    }
}
