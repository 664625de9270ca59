//! The macro that turns a documented struct into settings, and the walk over them.

use crate::id::TrustDomain;

use super::value::Value;

/// A group of settings: the whole configuration or one section of it.
pub(super) trait Settings {
    /// The group's doc comment, a line each.
    const DOC: &'static [&'static str];

    /// Shows every setting below `prefix` to `visitor`: first the group's own, then those of its sections.
    fn visit(&mut self, prefix: &str, visitor: &mut dyn Visitor);
}

/// Looks at, or changes, each setting in turn.
pub(super) trait Visitor {
    /// A section begins. `path` is its name in the file (`attest.unix`).
    fn section(&mut self, _path: &str, _doc: &[&str]) {}

    /// A setting. `path` is its whole name (`attest.unix.sha256`).
    fn setting(&mut self, path: &str, doc: &[&str], value: &mut dyn Value);
}

/// `key` below `prefix`.
pub(super) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// What stands in a [`super::Config`] until a source names the trust domain. The loader refuses a configuration in
/// which none did, so this name never gets out.
pub(super) fn unset_trust_domain() -> TrustDomain {
    TrustDomain::parse("unset.invalid").expect("the name is legal; a test loads without one")
}

/// Declares a struct of settings: each has a doc comment, which is its documentation everywhere, a type and a default.
/// `section` fields are settings groups of their own; `fixed` fields cannot be set by any source.
macro_rules! settings {
    (
        $(#[doc = $doc:literal])+
        pub struct $name:ident {
            $( $(#[doc = $key_doc:literal])+ $key:ident: $type:ty = $default:expr; )*
            $( section $section:ident: $section_type:ty; )*
            $( fixed $fixed:ident: $fixed_type:ty = $fixed_default:expr, $fixed_doc:literal; )*
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[doc = $key_doc])+ pub $key: $type, )*
            $( #[doc = concat!("The section `", stringify!($section), "`.")] pub $section: $section_type, )*
            $( #[doc = $fixed_doc] pub $fixed: $fixed_type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $( $key: $default, )*
                    $( $section: <$section_type>::default(), )*
                    $( $fixed: $fixed_default, )*
                }
            }
        }

        impl settings::Settings for $name {
            const DOC: &'static [&'static str] = &[$($doc),+];

            fn visit(&mut self, prefix: &str, visitor: &mut dyn settings::Visitor) {
                $( visitor.setting(&settings::join(prefix, stringify!($key)), &[$($key_doc),+], &mut self.$key); )*
                $(
                    let path = settings::join(prefix, stringify!($section));
                    visitor.section(&path, <$section_type as settings::Settings>::DOC);
                    settings::Settings::visit(&mut self.$section, &path, visitor);
                )*
                // Some groups have no setting or no section of their own.
                let _ = (prefix, visitor);
            }
        }
    };
}

pub(super) use settings;
