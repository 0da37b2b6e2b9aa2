//! Which instructions the CPU kernels use: the best that this machine has, or what `DDPM_IP_ISA` says.

use std::fmt;
use std::sync::OnceLock;

/// The environment variable that forces an instruction set.
pub const ISA_VARIABLE: &str = "DDPM_IP_ISA";

/// An instruction set that the kernels are compiled for, from the plainest to the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// As [`AmxBf16`](Self::AmxBf16), with a program in place of the tiles: slow, so that what is written for them can be tried elsewhere.
    #[cfg(target_arch = "x86_64")]
    AmxEmulated,
    /// What every processor of the architecture has, as the compiler finds it.
    Portable,
    /// 128-bit vectors of 64-bit ARM, in pairs.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit vectors (F, BW, DQ, VL).
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with products of bf16 pairs.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// That, and products of bf16 in tiles.
    #[cfg(target_arch = "x86_64")]
    AmxBf16,
}

/// A forced instruction set that is unknown or that this machine does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa {
    asked: String,
}

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Isa::available().map(Isa::name).collect();
        write!(
            f,
            "{ISA_VARIABLE}={} is not an instruction set of this machine; it has {}",
            self.asked,
            names.join(", ")
        )
    }
}

impl std::error::Error for UnknownIsa {}

impl Isa {
    const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::AmxEmulated,
        Self::Portable,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Bf16,
        #[cfg(target_arch = "x86_64")]
        Self::AmxBf16,
    ];

    /// Its name, as in `DDPM_IP_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::AmxEmulated => "amx-emulated",
            Self::Portable => "portable",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Self::AmxBf16 => "amx-bf16",
        }
    }

    /// Those that this machine has, the fastest last.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|isa| isa.is_available())
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        use std::is_x86_feature_detected as has;
        let avx2 = || has!("avx2") && has!("fma");
        let avx512 = || avx2() && has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq");
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2(),
            Self::Avx512 | Self::AmxEmulated => avx512(),
            Self::Avx512Bf16 => avx512() && has!("avx512bf16"),
            Self::AmxBf16 => avx512() && has!("avx512bf16") && crate::amx::is_usable(),
        }
    }

    /// 64-bit ARM always has NEON.
    #[cfg(not(target_arch = "x86_64"))]
    #[expect(clippy::unused_self, reason = "there is nothing to ask the machine for")]
    fn is_available(self) -> bool {
        true
    }

    /// The fastest that this machine has, or the one that `forced` names.
    fn choose(forced: Option<&str>) -> Result<Self, UnknownIsa> {
        match forced.filter(|name| !name.is_empty()) {
            None => Ok(Self::available().last().unwrap_or(Self::Portable)),
            Some(name) => {
                Self::available().find(|isa| isa.name() == name).ok_or_else(|| UnknownIsa { asked: name.to_owned() })
            }
        }
    }

    /// What the kernels of this process use. Programs ask once at their beginning, to report a wrong
    /// `DDPM_IP_ISA`; the kernels themselves pass over one.
    ///
    /// # Errors
    /// If `DDPM_IP_ISA` names an instruction set that is unknown or not there.
    pub fn selected() -> Result<Self, UnknownIsa> {
        static SELECTED: OnceLock<Result<Isa, UnknownIsa>> = OnceLock::new();
        SELECTED
            .get_or_init(|| {
                let forced = std::env::var_os(ISA_VARIABLE).map(|name| name.to_string_lossy().into_owned());
                Self::choose(forced.as_deref())
            })
            .clone()
    }

    /// Whether the kernels of this process use the tiles of AMX.
    pub(crate) fn has_tiles() -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(Self::current(), Self::AmxBf16 | Self::AmxEmulated);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// As [`selected`](Self::selected), and the fastest if the choice was wrong.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn current() -> Self {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| Self::selected().unwrap_or_else(|_| Self::available().last().unwrap_or(Self::Portable)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_is_chosen_unless_another_is_forced() {
        assert_eq!(Isa::choose(None).ok(), Isa::available().last());
        assert_eq!(Isa::choose(Some("")).ok(), Isa::available().last());
        assert_eq!(Isa::choose(Some("portable")), Ok(Isa::Portable));
        let error = Isa::choose(Some("mmx")).expect_err("no such set").to_string();
        assert!(error.contains("DDPM_IP_ISA=mmx") && error.contains("portable"), "{error}");
    }
}
