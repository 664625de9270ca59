//! A ledger whose files are not what was written: nothing that was revoked may come back.

use std::fs;

use super::*;

/// A revoked certificate, and two credentials that stand: of a process, and of the node.
struct Known {
    desk: Desk,
    revoked: String,
    standing: String,
    of_node: String,
    file: PathBuf,
    whole: Vec<u8>,
    head: Vec<u8>,
}

impl Known {
    async fn new() -> Self {
        let desk = Desk::new();
        let ledger = desk.open();
        let standing = desk.issue(&ledger, Kind::X509, 2, &desk.process());
        let of_node = desk.issue(&ledger, Kind::Jwt, 3, &Tie::Node);
        let revoked = desk.issue(&ledger, Kind::X509, 1, &Tie::Node);
        ledger.revoke(|credential| credential.id == revoked, Reason::Operator).await.unwrap();
        drop(ledger);
        let file = desk.files().pop().unwrap();
        let (whole, head) = (fs::read(&file).unwrap(), fs::read(desk.head()).unwrap());
        Self { desk, revoked, standing, of_node, file, whole, head }
    }

    /// As it was, but for the content of the file.
    fn put(&self, content: Option<&[u8]>) {
        for old in self.desk.files() {
            fs::remove_file(old).unwrap();
        }
        fs::write(self.desk.head(), &self.head).unwrap();
        if let Some(content) = content {
            fs::write(&self.file, content).unwrap();
        }
    }

    /// Nothing stands, and what is known is listed.
    fn assert_nothing_stands(&self, ledger: &Ledger, case: &str) {
        assert!(ledger.repaired().is_some(), "{case}");
        for id in [&self.revoked, &self.standing, &self.of_node] {
            let standing = ledger.standing(id);
            assert!(!matches!(standing, Standing::Stands | Standing::Used), "{case}: {id} {standing:?}");
        }
        let listed: Vec<String> = ledger.revoked("ca-1").into_iter().map(|line| line.serial).collect();
        for id in [&self.revoked, &self.standing] {
            assert_eq!(listed.contains(id), ledger.standing(id) != Standing::Unknown, "{case}");
        }
    }
}

#[tokio::test]
async fn after_a_flipped_bit_anywhere_nothing_stands_that_stood_and_nothing_revoked_comes_back() {
    let known = Known::new().await;
    for boot in [known.desk.boot, NEXT_BOOT.parse().unwrap()] {
        for at in 0..known.whole.len() {
            let mut flipped = known.whole.clone();
            flipped[at] ^= 0x20;
            known.put(Some(&flipped));
            let (ledger, _) = match known.desk.open_at(boot) {
                Ok(opened) => opened,
                // Only where it names its node.
                Err(LedgerError::Foreign(_)) => continue,
                Err(error) => panic!("byte {at}: {error}"),
            };
            known.assert_nothing_stands(&ledger, &format!("byte {at}"));
            assert!(ledger.repaired().unwrap().contains("damaged at byte"), "{:?}", ledger.repaired());
        }
    }
}

#[tokio::test]
async fn after_a_missing_end_or_file_nothing_stands_that_stood_and_nothing_revoked_comes_back() {
    let known = Known::new().await;
    let cuts = (0..known.whole.len()).map(|length| Some(&known.whole[..length]));
    for content in cuts.chain([None]) {
        known.put(content);
        let case = format!("{:?} bytes", content.map(<[u8]>::len));
        known.assert_nothing_stands(&known.desk.open(), &case);
    }
}

#[tokio::test]
async fn a_repaired_ledger_serves_and_keeps_what_is_damaged_until_somebody_looked_into_it() {
    let known = Known::new().await;
    let mut flipped = known.whole.clone();
    let at = flipped.len() - 3;
    flipped[at] ^= 1;
    known.put(Some(&flipped));
    let ledger = known.desk.open();
    assert_eq!(ended(ledger.standing(&known.standing)), Some(Reason::LedgerRepaired));
    let new = known.desk.issue(&ledger, Kind::Jwt, 9, &Tie::Node);
    ledger.sync().await;
    drop(ledger);

    let again = known.desk.open();
    assert_eq!(again.repaired(), None, "it happens once");
    assert_eq!(again.standing(&new), Standing::Stands);
    assert_eq!(ended(again.standing(&known.standing)), Some(Reason::LedgerRepaired));
    assert!(again.weaknesses()[0].contains(".log.damaged"), "{:?}", again.weaknesses());
    let aside = known.desk.files().into_iter().find(|path| path.to_string_lossy().ends_with(".damaged")).unwrap();
    assert_eq!(fs::read(&aside).unwrap(), flipped);
    fs::remove_file(aside).unwrap();
    assert!(again.weaknesses().is_empty());
}

#[tokio::test]
async fn what_a_crash_or_a_loss_of_power_left_unfinished_is_no_damage() {
    let desk = Desk::new();
    let ledger = desk.open();
    let kept = desk.issue(&ledger, Kind::Jwt, 1, &Tie::Node);
    ledger.sync().await;
    let synced = fs::read(desk.files().pop().unwrap()).unwrap().len();
    let unsynced = desk.issue(&ledger, Kind::Jwt, 2, &Tie::Node);
    drop(ledger);
    let file = desk.files().pop().unwrap();
    let (whole, head) = (fs::read(&file).unwrap(), fs::read(desk.head()).unwrap());
    let torn = (desk.boot, whole[..whole.len() - 1].to_vec());
    let zeros = (NEXT_BOOT.parse().unwrap(), [&whole[..synced], &[0; 100]].concat());
    let garbage = (NEXT_BOOT.parse().unwrap(), [&whole[..synced], &[0xa5; 100]].concat());
    for (boot, content) in [torn, zeros, garbage] {
        for old in desk.files() {
            fs::remove_file(old).unwrap();
        }
        fs::write(&file, &content).unwrap();
        fs::write(desk.head(), &head).unwrap();
        for start in 0..3 {
            let (ledger, _) = desk.open_at(boot).unwrap();
            assert_eq!(ledger.repaired(), None, "start {start}");
            assert_eq!(ledger.standing(&kept), Standing::Stands);
            assert_eq!(ledger.standing(&unsynced), Standing::Unknown);
        }
    }
}

#[tokio::test]
async fn files_that_are_given_up_are_never_missed() {
    let desk = Desk::new();
    let ledger = desk.open();
    for number in 0..500 {
        desk.issue(&ledger, Kind::Jwt, number, &desk.process());
    }
    ledger.sync().await;
    drop(ledger);
    let ledger = desk.open();
    desk.hand.advance(HOUR + Duration::from_secs(200));
    desk.issue(&ledger, Kind::Jwt, 1001, &desk.process());
    ledger.sync().await;
    assert_eq!(desk.files().len(), 1, "the file of the first start is gone");
    drop(ledger);
    assert_eq!(desk.open().repaired(), None);
}

#[tokio::test]
async fn of_a_ledger_from_a_backup_nothing_stands_until_it_is_issued_anew() {
    let known = Known::new().await;
    super::super::repair::mark_restored(&known.desk.path(), NODE).unwrap();
    let ledger = known.desk.open();
    known.assert_nothing_stands(&ledger, "restored");
    assert!(ledger.repaired().unwrap().contains("backup"));
    let new = known.desk.issue(&ledger, Kind::Jwt, 9, &Tie::Node);
    drop(ledger);
    let again = known.desk.open();
    assert_eq!((again.repaired(), again.standing(&new)), (None, Standing::Stands));
}

#[tokio::test]
async fn a_ledger_from_before_there_was_a_head_is_read_as_it_is() {
    let known = Known::new().await;
    known.put(Some(&known.whole));
    fs::remove_file(known.desk.head()).unwrap();
    let ledger = known.desk.open();
    assert_eq!(ledger.repaired(), None);
    assert_eq!(ledger.standing(&known.standing), Standing::Stands);
    assert_eq!(ended(ledger.standing(&known.revoked)), Some(Reason::Operator));
}

#[tokio::test]
async fn an_agent_that_starts_while_the_clock_is_ahead_forgets_nothing_that_was_revoked() {
    let mut known = Known::new().await;
    known.put(Some(&known.whole));
    let start = known.desk.clock.now();
    for _ in 0..2 {
        // Another agent each time: no clock of its remembers anything.
        let (clock, hand) = Clock::manual(start + 5 * HOUR);
        clock.remember(last_clock(&known.desk.path(), NODE).unwrap());
        (known.desk.clock, known.desk.hand) = (clock, hand);
        let ledger = known.desk.open();
        // What is over by this clock is given up with the next one that is issued, if ever.
        let other = known.desk.issue(&ledger, Kind::Jwt, 9, &Tie::Node);
        ledger.revoke(|credential| credential.id == other, Reason::Operator).await.unwrap();
    }
    known.desk.hand.set(start);
    let ledger = known.desk.open();
    assert_eq!(ended(ledger.standing(&known.revoked)), Some(Reason::Operator));
    assert_eq!(ledger.revoked("ca-1").len(), 1, "it is on the list");
}

#[tokio::test]
async fn who_watches_a_tie_goes_on_while_the_clock_may_have_to_be_set_back() {
    let desk = Desk::new();
    let ledger = desk.open();
    desk.issue(&ledger, Kind::X509, 1, &desk.process());
    desk.hand.set(desk.clock.now() + 2 * HOUR);
    assert!(ledger.let_go(&desk.process()).is_err(), "set forward, it may be set back");
    desk.hand.advance(HOUR + Duration::from_secs(2));
    assert!(ledger.let_go(&desk.process()).is_ok(), "it has passed");
}
