//! What was found damaged at the start is told where it is looked for, and nothing comes back by it.

use crate::audit::{Audit, Event};
use crate::authority::keys::KeyStore;
use crate::authority::slot::Slot;
use crate::ledger::Ledger;
use crate::store::{Change, Expect, Recovered, Space, Store};

use super::StartError;

/// Tells of a store that was built anew from its copy. Where the copy may be older than the keys, authorities whose key is
/// gone are forgotten: a key goes when its authority is revoked or over.
pub(super) async fn of_store(store: &Store, keys: &KeyStore, audit: &Audit) -> Result<(), StartError> {
    let Some(recovered) = store.recovered() else { return Ok(()) };
    let mut what = said(recovered);
    if recovered.torn {
        let rows = store.list::<Slot>(Space::Authorities).await?;
        let gone = rows.iter().filter(|(id, _)| !keys.has(id)).map(|(id, _)| id.as_str()).collect::<Vec<_>>();
        if !gone.is_empty() {
            let changes = gone.iter().map(|id| Change::delete(Space::Authorities, id, Expect::Any)).collect();
            store.apply(changes).await?;
            what.push_str(&format!(". Authorities without a key were forgotten: {}", gone.join(", ")));
        }
    }
    tracing::error!("the store was built anew from its copy: {what}");
    audit.synced(Event::StateRepaired { part: "store", what }).await?;
    Ok(())
}

fn said(recovered: &Recovered) -> String {
    let Recovered { why, aside, revision, torn } = recovered;
    let aside = aside.as_ref().map(|path| format!("; what there was is now `{}`", path.display())).unwrap_or_default();
    let lost = if *torn {
        "the copy ends in a change that was not written whole: the last change may be missing, so look through `tether entry \
         list`, `tether authority show` and `tether approval list`"
    } else {
        "nothing is lost"
    };
    format!("{why}{aside}; the copy is of revision {revision}: {lost}")
}

/// Tells of a ledger that was damaged: everything that was issued before has ended.
pub(super) async fn of_ledger(ledger: &Ledger, audit: &Audit) -> Result<(), StartError> {
    let Some(what) = ledger.repaired() else { return Ok(()) };
    tracing::error!("the ledger was damaged: {what}");
    audit.synced(Event::StateRepaired { part: "ledger", what: what.to_owned() }).await?;
    Ok(())
}
