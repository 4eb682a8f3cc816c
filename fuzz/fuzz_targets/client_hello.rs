//! See `remora_fuzz::client_hello`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::client_hello(data));
