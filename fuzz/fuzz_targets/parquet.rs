#![no_main]

libfuzzer_sys::fuzz_target!(
    // The library panics on damaged files, which is caught; the fuzzer's own hook would end there.
    init: std::panic::set_hook(Box::new(|_| {})),
    |data: &[u8]| chronicals_fuzz::parquet(data)
);
