//! Asking over the system bus: a connection that is made when needed, and how a call can fail.

use serde::Serialize;
use tokio::sync::Mutex;
use zbus::wire::DynamicDeserialize;
use zbus::{Connection, DynamicType, MatchRule, Message, connection, fdo, message};

/// The bus itself, which says when a service leaves it.
const BUS: &str = "org.freedesktop.DBus";

/// A connection that is made when needed and made again when it broke.
#[derive(Debug, Default)]
pub(crate) struct Link(Mutex<Option<Connection>>);

impl Link {
    /// A connection to the bus at `address`, or to the one in `DBUS_SYSTEM_BUS_ADDRESS`, or at the usual socket.
    pub async fn connect(&self, address: Option<&str>) -> Result<Connection, CallError> {
        self.connect_and(address, || ()).await
    }

    /// Calls `fresh` when the connection is a new one.
    pub async fn connect_and(&self, address: Option<&str>, fresh: impl FnOnce()) -> Result<Connection, CallError> {
        let mut slot = self.0.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let builder = match address {
            Some(address) => connection::Builder::address(address),
            None => connection::Builder::system(),
        };
        let connection = builder.build().await.map_err(|error| CallError::Unreachable(error.to_string()))?;
        fresh();
        Ok(slot.insert(connection).clone())
    }
}

/// How a call failed, as far as it matters what to do.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The service answered with this error of its own, in these words.
    Named(String, String),
    /// The service does not know the method.
    UnknownMethod,
    /// We may not call it. The bus has a list of the methods that users other than root may call, those that the systemd it
    /// came with knows, and says the same of methods that do not exist.
    Forbidden(String),
    /// The service, or the bus for it, answered with another error, or with what its interface does not promise.
    Refused(String),
    /// There is no bus, or the service is not on it.
    Unreachable(String),
}

/// Calls a method of a service.
pub(crate) async fn call<B: Serialize + DynamicType>(
    connection: &Connection,
    service: &str,
    path: &str,
    interface: &str,
    method: &str,
    body: &B,
) -> Result<Message, CallError> {
    let reply = connection.call_method(Some(service), path, Some(interface), method, body).await;
    reply.map_err(|error| match error {
        zbus::Error::MethodError(name, words, _) => {
            CallError::Named(name.as_str().to_owned(), words.unwrap_or_default())
        }
        zbus::Error::FDO(error) => match *error {
            fdo::Error::UnknownMethod(_) => CallError::UnknownMethod,
            fdo::Error::AccessDenied(_) => CallError::Forbidden(error.to_string()),
            fdo::Error::ServiceUnknown(_)
            | fdo::Error::NameHasNoOwner(_)
            | fdo::Error::NoReply(_)
            | fdo::Error::Disconnected(_) => CallError::Unreachable(error.to_string()),
            _ => CallError::Refused(error.to_string()),
        },
        zbus::Error::Unsupported => CallError::UnknownMethod, // a bus that passes no descriptors, such as over TCP
        error => CallError::Unreachable(error.to_string()),
    })
}

/// What a reply says.
pub(crate) fn decode<T>(reply: &Message) -> Result<T, CallError>
where
    T: for<'de> DynamicDeserialize<'de>,
{
    reply.body().deserialize().map_err(|error| CallError::Refused(error.to_string()))
}

/// What the bus sends when a service leaves it or is another one, which knows nothing of what was asked of the first.
pub(crate) fn other_owner(service: &'static str) -> zbus::Result<MatchRule<'static>> {
    let from_bus = MatchRule::builder().msg_type(message::Type::Signal).sender(BUS);
    from_bus.member("NameOwnerChanged").arg(0, service).build()
}

#[cfg(test)]
pub(crate) mod tests {
    //! A message bus to play a service on.

    use std::io::{BufRead, BufReader};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    /// A message bus of our own at `DIR/bus`.
    pub(crate) struct Daemon(Child);

    impl Daemon {
        /// `None` where no message bus is installed.
        pub(crate) fn start(dir: &Path) -> Option<Self> {
            let config = format!(
                r#"<busconfig><type>session</type><listen>{}</listen><policy context="default">
            <allow send_destination="*"/><allow own="*"/><allow eavesdrop="false"/></policy></busconfig>"#,
                address(dir)
            );
            std::fs::write(dir.join("bus.conf"), config).expect("written");
            let mut command = Command::new("dbus-daemon");
            command.arg("--nofork").arg("--print-address").arg("--config-file").arg(dir.join("bus.conf"));
            let mut child = match command.stdout(Stdio::piped()).spawn() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
                started => started.expect("it starts"),
            };
            let mut ready = String::new();
            BufReader::new(child.stdout.take().expect("piped"))
                .read_line(&mut ready)
                .expect("it says where it listens");
            assert!(ready.starts_with("unix:"), "{ready}");
            Some(Self(child))
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Where [`Daemon`] listens.
    pub(crate) fn address(dir: &Path) -> String {
        format!("unix:path={}", dir.join("bus").display())
    }
}
