//! Names of the values that a configuration chooses from.

/// Gives an enum that is set in configurations the names of its values, in the words of its serde
/// form: `NAMES`, `name` and `FromStr`.
macro_rules! names {
    ($type:ty: $($name:literal = $variant:ident,)*) => {
        impl $type {
            /// The names of all values, as configurations write them.
            pub const NAMES: [&'static str; [$($name),*].len()] = [$($name),*];

            /// The name of this value, as configurations and files write it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            /// The value of a name. Any other text is an error that lists the names.
            fn from_str(name: &str) -> std::result::Result<Self, String> {
                match name {
                    $($name => Ok(Self::$variant),)*
                    _ => Err(format!("not one of {}", Self::NAMES.join(", "))),
                }
            }
        }
    };
}

pub(crate) use names;
