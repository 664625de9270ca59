//! A gRPC channel to a local endpoint.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Uri};

use super::Endpoint;

/// Far longer than a local connection takes; an agent that does not accept within it counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A channel that connects at the first call, and again after the connection was lost.
///
/// The `:authority` is `localhost`: there is no name to give, and some servers refuse a socket's path there.
pub fn channel(endpoint: &Endpoint) -> Channel {
    let endpoint = endpoint.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let endpoint = endpoint.clone();
        async move {
            let stream: Box<dyn Stream> = match &endpoint {
                Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
                Endpoint::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Channel::from_static("http://localhost").connect_timeout(CONNECT_TIMEOUT).connect_with_connector_lazy(connector)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
