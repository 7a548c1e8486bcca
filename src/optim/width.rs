//! Runs a kernel on the widest registers that the processor has.

/// A loop that is compiled once for each width of registers. None may contract a product and a sum,
/// so that every width gives the same bits.
pub(super) trait Kernel {
    /// What it gives.
    type Output;

    /// The loop. It and what it calls must be inlined (`#[inline(always)]`), or they are compiled
    /// for the plain target.
    fn run(self) -> Self::Output;
}

/// The kernel's output.
pub(super) fn on_widest<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has AVX-512 F and BW, checked on the line above.
            return unsafe { on_avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, checked on the line above.
            return unsafe { on_avx2(kernel) };
        }
    }
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn on_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn on_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
