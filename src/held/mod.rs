//! Keys that never leave: held for one instance, used only for it, wiped with it.
