//! What a field of an event can be, and the macro that makes the events: each is declared once, with its documentation,
//! and the durable record, the log line and docs/audit.md are all made from that.

use std::borrow::Cow;

use time::OffsetDateTime;

/// A process, as the kernel told us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The instance, or empty when the caller was gone before it could be held.
    pub instance: String,
    /// The process id at the time, for people; never evidence.
    pub pid: i32,
    /// The user id.
    pub uid: u32,
}

/// The value of one field. Texts and lists that are empty are as good as absent, and are left out.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// There is none.
    Absent,
    /// Some text.
    Text(Cow<'a, str>),
    /// Several texts.
    Texts(&'a [String]),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// A point in time.
    Time(OffsetDateTime),
    /// A process.
    Caller(&'a Caller),
}

impl Value<'_> {
    /// Whether there is nothing to write.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Absent => true,
            Self::Text(text) => text.is_empty(),
            Self::Texts(texts) => texts.is_empty(),
            _ => false,
        }
    }
}

/// A type that a field of an event can have.
pub(super) trait Field {
    /// What kind of JSON value it becomes, in the words of docs/audit.md.
    const KIND: &'static str;

    /// Its value.
    fn value(&self) -> Value<'_>;
}

impl Field for String {
    const KIND: &'static str = "text";

    fn value(&self) -> Value<'_> {
        Value::Text(Cow::Borrowed(self))
    }
}

impl Field for &'static str {
    const KIND: &'static str = "text";

    fn value(&self) -> Value<'_> {
        Value::Text(Cow::Borrowed(self))
    }
}

impl Field for Vec<String> {
    const KIND: &'static str = "list of texts";

    fn value(&self) -> Value<'_> {
        Value::Texts(self)
    }
}

impl Field for bool {
    const KIND: &'static str = "true or false";

    fn value(&self) -> Value<'_> {
        Value::Flag(*self)
    }
}

impl Field for OffsetDateTime {
    const KIND: &'static str = "time";

    fn value(&self) -> Value<'_> {
        Value::Time(*self)
    }
}

impl Field for Caller {
    const KIND: &'static str = "process";

    fn value(&self) -> Value<'_> {
        Value::Caller(self)
    }
}

impl<T: Field> Field for Option<T> {
    const KIND: &'static str = T::KIND;

    fn value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Absent, Field::value)
    }
}

macro_rules! numbers {
    ($($type:ty),+) => {
        $(
            impl Field for $type {
                const KIND: &'static str = "number";

                fn value(&self) -> Value<'_> {
                    // No number here is wider than 64 bits.
                    Value::Number(*self as u64)
                }
            }
        )+
    };
}

numbers!(u8, u32, u64, usize);

/// One type of event, as docs/audit.md has it.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// Its name: the field `event` of a record.
    pub event: &'static str,
    /// When it happens.
    pub doc: &'static [&'static str],
    /// What it says.
    pub fields: &'static [FieldSchema],
}

/// One field of a [`Schema`].
#[derive(Clone, Copy, Debug)]
pub struct FieldSchema {
    /// Its name.
    pub name: &'static str,
    /// What kind of JSON value it is.
    pub kind: &'static str,
    /// What it means.
    pub doc: &'static [&'static str],
}

/// Declares the events. `name: Variant { field: Type, .. }`, each with a doc comment, which is its documentation
/// everywhere.
macro_rules! events {
    (
        $(#[$meta:meta])*
        pub enum $enum:ident {
            $(
                $(#[doc = $doc:literal])+
                $name:literal: $variant:ident {
                    $( $(#[doc = $field_doc:literal])+ $field:ident: $type:ty, )*
                }
            )+
        }
    ) => {
        $(#[$meta])*
        pub enum $enum {
            $(
                $(#[doc = $doc])+
                $variant {
                    $( $(#[doc = $field_doc])+ $field: $type, )*
                },
            )+
        }

        impl $enum {
            /// Every type of event.
            pub const SCHEMA: &'static [$crate::audit::Schema] = &[
                $(
                    $crate::audit::Schema {
                        event: $name,
                        doc: &[$($doc),+],
                        fields: &[
                            $(
                                $crate::audit::FieldSchema {
                                    name: stringify!($field),
                                    kind: <$type as $crate::audit::field::Field>::KIND,
                                    doc: &[$($field_doc),+],
                                },
                            )*
                        ],
                    },
                )+
            ];

            /// Its name in records, queries and the log.
            pub fn name(&self) -> &'static str {
                match self {
                    $( Self::$variant { .. } => $name, )+
                }
            }

            /// Shows each field to `visit`, in order.
            pub fn each_field<'a>(&'a self, mut visit: impl FnMut(&'static str, $crate::audit::Value<'a>)) {
                match self {
                    $(
                        Self::$variant { $($field),* } => {
                            $( visit(stringify!($field), $crate::audit::field::Field::value($field)); )*
                        }
                    )+
                }
                // Some events have no field.
                let _ = &mut visit;
            }
        }
    };
}

pub(super) use events;
