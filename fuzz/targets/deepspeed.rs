//! Fuzzes `deepspeed` of `optswap_fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    optswap_fuzz::DEEPSPEED.check(bytes);
});
