//! Runs a kernel on the widest vector registers that the processor has.

/// A loop that is compiled once for each width of registers. A kernel may not contract a product
/// and a sum into one operation, so that every width gives the same bits.
pub(super) trait Kernel {
    /// The result of the loop.
    type Output;

    /// The loop. This function and all that it calls must be inlined (`#[inline(always)]`),
    /// because a function that is not inlined is compiled for the plain target.
    fn run(self) -> Self::Output;
}

/// The registers that a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Plain,
}

impl Width {
    const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        Self::Plain,
    ];

    /// The widest registers that this processor has.
    pub fn widest() -> Self {
        widths().next().unwrap_or(Self::Plain)
    }

    fn is_there(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            Self::Plain => true,
        }
    }
}

/// The widths that this processor has, the widest first.
pub(super) fn widths() -> impl Iterator<Item = Width> {
    Width::ALL.iter().copied().filter(|width| width.is_there())
}

/// Runs a kernel on the widest registers that this processor has.
pub(super) fn on_widest<K: Kernel>(kernel: K) -> K::Output {
    on_width(Width::widest(), kernel)
}

/// Runs a kernel on registers of this width, or of the plain target if the processor has none so
/// wide.
pub(super) fn on_width<K: Kernel>(width: Width, kernel: K) -> K::Output {
    match width {
        #[cfg(target_arch = "x86_64")]
        Width::Avx512 if width.is_there() => {
            // SAFETY: the processor has AVX-512 F and BW, checked on the line above.
            unsafe { on_avx512(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Width::Avx2 if width.is_there() => {
            // SAFETY: the processor has AVX2, checked on the line above.
            unsafe { on_avx2(kernel) }
        }
        _ => kernel.run(),
    }
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
