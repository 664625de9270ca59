//! Connections that stop being HTTP.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::cut::Cut;

/// Passes bytes between the two ends of a WebSocket until one of them is done, or one of `cuts` ends it. Both ends are
/// closed when this returns.
pub(super) async fn tunnel(client: OnUpgrade, server: OnUpgrade, cuts: [Option<Cut>; 2]) {
    let passing = async {
        let (client, server) = tokio::try_join!(client, server)?;
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        // Who ends it without a word to the other is no news.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        Ok::<_, hyper::Error>(())
    };
    let [first, second] = cuts.map(|cut| async move {
        match cut {
            Some(mut cut) => drop(cut.cut().await),
            None => std::future::pending().await,
        }
    });
    tokio::select! {
        biased;
        () = first => {}
        () = second => {}
        passed = passing => if let Err(error) = passed {
            tracing::debug!(%error, "a WebSocket did not begin");
        },
    }
}
