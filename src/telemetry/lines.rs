//! Lines on their way to whoever reads the log, who may be slow, or hang.
//!
//! Promises: nobody who logs waits. A thread of its own writes; where it does not keep up, lines are lost, counted, and
//! the count is logged. What was logged before [`Lines::flush`] is written when that returns, unless the reader takes no
//! more.
//!
//! Does not: keep the lines of a process that is killed and that were not written yet.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait at most: some megabytes, and seconds of a busy agent.
const WAITING: usize = 8192;

/// Takes lines from everywhere. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    sender: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Lines {
    /// Starts the thread that hands each line to `write`.
    pub(super) fn start(write: impl FnMut(&[u8]) + Send + 'static) -> io::Result<Self> {
        Self::holding(WAITING, write)
    }

    fn holding(most: usize, write: impl FnMut(&[u8]) + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(most);
        let lost = Arc::new(AtomicU64::new(0));
        let of_thread = lost.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || pass_on(&receiver, &of_thread, write))?;
        Ok(Self { sender, lost })
    }

    /// Hands over a line, or loses it.
    pub(super) fn push(&self, line: Vec<u8>) {
        if self.sender.try_send(Item::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was logged before is written, but no longer than this.
    pub(super) fn flush(&self, within: Duration) {
        let (done, wait) = sync_channel(1);
        if self.sender.try_send(Item::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(within);
        }
    }
}

fn pass_on(receiver: &Receiver<Item>, lost: &AtomicU64, mut write: impl FnMut(&[u8])) {
    let mut told = 0;
    while let Ok(item) = receiver.recv() {
        match item {
            Item::Line(line) => write(&line),
            Item::Flush(done) => drop(done.send(())),
        }
        if let Some((lost, in_all)) = untold(lost, &mut told) {
            tracing::warn!(lost, in_all, "lines of the log are lost: whoever reads it is too slow");
        }
    }
}

/// How many lines were lost since this was asked, and since the start. There is room for a line that says so, which comes by
/// the same way, but somebody else may take it: then that line is one more, and the next one has the right number in all.
fn untold(lost: &AtomicU64, told: &mut u64) -> Option<(u64, u64)> {
    let in_all = lost.load(Ordering::Relaxed);
    let before = std::mem::replace(told, in_all);
    (in_all > before).then(|| (in_all - before, in_all))
}

/// One line in the making: what is written to it is one line, whole.
pub(super) struct Line<'a>(&'a Lines);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn who_logs_does_not_wait_for_who_reads_and_what_is_lost_is_counted() {
        let (go, gate) = channel::<()>();
        let (written, read) = channel();
        let write = move |line: &[u8]| {
            // A reader that hangs until it is told.
            let _ = gate.recv();
            let _ = written.send(line.to_vec());
        };
        let lines = Lines::holding(2, write).unwrap();
        // One is with the reader, sooner or later, and two wait.
        (0..10).for_each(|n| lines.push(vec![n]));
        lines.flush(Duration::ZERO);
        let lost = lines.lost.load(Ordering::Relaxed);
        assert!((7..=8).contains(&lost), "{lost}");
        drop(go);
        let taken: Vec<_> = (0..10 - lost).map(|_| read.recv().unwrap()).collect();
        assert_eq!(taken[..2], [vec![0], vec![1]]);
    }

    #[test]
    fn a_number_of_lost_lines_that_is_lost_itself_is_in_the_next_one() {
        let (_go, gate) = channel::<()>();
        let write = move |_: &[u8]| {
            let _ = gate.recv();
        };
        let lines = Lines::holding(1, write).unwrap();
        (0..10).for_each(|n| lines.push(vec![n]));
        let mut told = 0;
        let (first, in_all) = untold(&lines.lost, &mut told).unwrap();
        assert_eq!((first, in_all), (in_all, in_all));
        assert_eq!(untold(&lines.lost, &mut told), None);
        // The line that says so finds no room.
        let one_more = (0..3).map(|n| lines.push(vec![n])).count() as u64;
        let (since, now) = untold(&lines.lost, &mut told).unwrap();
        assert!((1..=one_more).contains(&since), "{since}");
        assert_eq!(now, in_all + since);
    }

    #[test]
    fn what_was_logged_is_written_when_it_is_flushed() {
        let (written, read) = channel();
        let lines = Lines::start(move |line: &[u8]| drop(written.send(line.to_vec()))).unwrap();
        for n in 0..100 {
            writeln!(lines.make_writer(), "{n}").unwrap();
        }
        lines.flush(Duration::from_secs(20));
        assert_eq!(read.try_iter().map(|line| line.len()).sum::<usize>(), 10 * 2 + 90 * 3);
    }
}
