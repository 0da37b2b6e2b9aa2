//! Enums that users spell: one table gives `Display`, `FromStr` and serde the same names.

/// A name that stands for none of the choices there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {given:?}: choose one of {}", .choices.join(", "))]
pub struct UnknownName {
    /// What was to be chosen, such as "noise schedule".
    pub what: &'static str,
    /// What was written.
    pub given: String,
    /// What can be written.
    pub choices: &'static [&'static str],
}

/// Defines an enum whose variants have names, kebab-case, shared by `Display`, `FromStr` and serde.
macro_rules! named_enum {
    (
        $(#[$attribute:meta])*
        pub enum $type:ident as $what:literal {
            $( $(#[$variant_attribute:meta])* $variant:ident = $name:literal, )+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
        pub enum $type {
            $( $(#[$variant_attribute])* #[serde(rename = $name)] $variant, )+
        }

        impl $type {
            /// Every choice, in the order of declaration.
            pub const ALL: &'static [Self] = &[$( Self::$variant ),+];

            /// The names of [`Self::ALL`], in the same order.
            pub const NAMES: &'static [&'static str] = &[$( $name ),+];

            /// The name that users write and files hold.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$variant => $name, )+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::name::UnknownName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text.trim() {
                    $( $name => Ok(Self::$variant), )+
                    _ => Err($crate::name::UnknownName { what: $what, given: text.to_owned(), choices: Self::NAMES }),
                }
            }
        }
    };
}
pub(crate) use named_enum;

#[cfg(test)]
mod tests {
    use crate::{LossKind, Mode, NoiseSchedule, Prediction, Spacing, Strength, Target, TimeSamplerKind, Variance};

    macro_rules! assert_names_round_trip {
        ($($type:ty),+) => {$(
            assert_eq!(<$type>::ALL.len(), <$type>::NAMES.len());
            for (&choice, &name) in <$type>::ALL.iter().zip(<$type>::NAMES) {
                assert_eq!(choice.to_string(), name);
                assert_eq!(name.parse::<$type>().unwrap(), choice);
                assert_eq!(serde_json::to_value(choice).unwrap(), name);
                assert_eq!(serde_json::from_value::<$type>(name.into()).unwrap(), choice);
            }
            assert!("no such name".parse::<$type>().is_err());
        )+};
    }

    #[test]
    fn every_name_reads_back_through_text_and_serde() {
        assert_names_round_trip!(
            NoiseSchedule,
            Variance,
            Prediction,
            LossKind,
            Mode,
            Spacing,
            Strength,
            Target,
            TimeSamplerKind
        );
    }

    #[test]
    fn an_unknown_name_lists_the_choices() {
        let message = "sigmoid".parse::<NoiseSchedule>().unwrap_err().to_string();
        assert_eq!(message, r#"unknown noise schedule "sigmoid": choose one of linear, cosine"#);
    }
}
