//! See `remora_fuzz::mux`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::mux(data));
