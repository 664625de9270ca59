#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::path::PathBuf;

use super::*;

mod repair;
use crate::base::clock::ManualClock;
use crate::id::SpiffeId;
use crate::peer::Instances;
use crate::registry::{Entry, Rules, Source, parse_entry};

const NODE: &str = "00112233445566778899aabbccddeeff";
const NEXT_BOOT: &str = "8f3c2a10-0002-4e6b-9d55-00c0ffee0000";
const LIMITS: Limits = Limits { credentials_per_uid: 1_000_000, certificates_per_uid: 1000 };
const HOUR: Duration = Duration::from_secs(3600);

/// A directory with a ledger that is opened again and again, and an instance to issue to: the test itself.
struct Desk {
    dir: tempfile::TempDir,
    clock: Clock,
    hand: ManualClock,
    boot: BootId,
    instance: Arc<Instance>,
    entry: Entry,
    spiffe_id: SpiffeId,
    audience: Vec<String>,
}

impl Desk {
    fn new() -> Self {
        let (clock, hand) = Clock::manual(OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap());
        let entry = r#"
            id = "billing"
            spiffe_id = "spiffe://example.org/billing"
            match = ["unix:uid:1000"]
            owner = "team@example.org"
        "#;
        let instances = Instances::new(crate::sys::Kernel::probe()).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        Self {
            dir: tempfile::tempdir().unwrap(),
            clock,
            hand,
            boot: instances.boot(),
            instance: instances.of_pid(pid, None).unwrap(),
            entry: parse_entry(entry, &Source::BuiltIn, &Rules::new("example.org".parse().unwrap())).unwrap(),
            spiffe_id: SpiffeId::parse("spiffe://example.org/billing").unwrap(),
            audience: vec!["demo".to_owned()],
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    fn head(&self) -> PathBuf {
        self.dir.path().join("ledger.head")
    }

    fn open_at(&self, boot: BootId) -> Result<(Ledger, NewTies), LedgerError> {
        Ledger::open(&self.path(), NODE, boot, self.clock.clone(), LIMITS)
    }

    fn open(&self) -> Ledger {
        self.open_at(self.boot).unwrap().0
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn process(&self) -> Tie {
        Tie::Process { instance: *self.instance.id(), pid: self.instance.pid() }
    }

    fn cgroup(&self) -> Tie {
        format!("cgroup:{}:77:/a.service", self.boot).parse().unwrap()
    }

    fn issued<'a>(&'a self, id: &'a str, kind: Kind, life: Duration) -> Issued<'a> {
        Issued {
            id,
            kind,
            spiffe_id: &self.spiffe_id,
            entry: &self.entry,
            audience: &self.audience,
            authority: "ca-1",
            binding: 1,
            held: false,
            issued_at: self.clock.now(),
            not_after: self.clock.now() + life,
            uid: 1000,
            single_use: false,
            delegate: None,
        }
    }

    fn issue(&self, ledger: &Ledger, kind: Kind, number: u32, tie: &Tie) -> String {
        let id = id(kind, number);
        ledger.record(&self.instance, tie, &self.issued(&id, kind, HOUR)).unwrap();
        id
    }
}

fn id(kind: Kind, number: u32) -> String {
    match kind {
        Kind::X509 => format!("{number:032x}"),
        Kind::Jwt | Kind::Wit => format!("{NODE}.{number:032x}"),
    }
}

fn ended(standing: Standing) -> Option<Reason> {
    match standing {
        Standing::Ended { reason, .. } => Some(reason),
        _ => None,
    }
}

#[tokio::test]
async fn what_was_issued_stands_after_the_agent_died_without_warning_and_nothing_else_does() {
    let desk = Desk::new();
    let ledger = desk.open();
    let (certificate, token) =
        (desk.issue(&ledger, Kind::X509, 1, &desk.process()), desk.issue(&ledger, Kind::Jwt, 2, &Tie::Node));
    let before = ledger.credential(&token).unwrap();
    // The first is still open: nothing was closed or synced.
    let restarted = desk.open();
    drop(ledger);
    let ledger = restarted;
    assert_eq!(ledger.standing(&certificate), Standing::Stands);
    assert_eq!(ledger.credential(&token), Some(before));
    for strange in [id(Kind::X509, 3), id(Kind::Jwt, 3), "x".to_owned(), format!("{}.{:032x}", "0".repeat(32), 2)] {
        assert_eq!(ledger.standing(&strange), Standing::Unknown, "{strange}");
    }
}

#[tokio::test]
async fn the_inventory_says_who_holds_what_and_who_asked() {
    let desk = Desk::new();
    let ledger = desk.open();
    let token = desk.issue(&ledger, Kind::Jwt, 7, &desk.process());
    desk.hand.advance(Duration::from_secs(5));
    assert_eq!(ledger.asked(&token), Standing::Stands);

    let shown = ledger.credential(&token).unwrap();
    assert_eq!((shown.id.as_str(), shown.kind, shown.owner.as_str()), (token.as_str(), Kind::Jwt, "team@example.org"));
    assert_eq!((shown.entry.as_str(), shown.audience.as_slice()), ("billing", desk.audience.as_slice()));
    assert_eq!((shown.instance, shown.uid), (*desk.instance.id(), 1000));
    assert_eq!(shown.last_asked, Some(desk.clock.now()));
    assert_eq!(shown.not_after, desk.clock.now() - Duration::from_secs(5) + HOUR);
}

#[tokio::test]
async fn the_end_of_a_tie_ends_what_is_tied_to_it_and_nothing_else_also_after_a_restart() {
    let desk = Desk::new();
    let ledger = desk.open();
    let [first, second] = [1, 2].map(|number| desk.issue(&ledger, Kind::X509, number, &desk.process()));
    let other = desk.issue(&ledger, Kind::X509, 3, &Tie::Node);
    let mut crl = ledger.crl_changes();
    crl.mark_unchanged();

    assert_eq!(ledger.tie_ended(&desk.process(), Reason::ProcessExited).unwrap(), 2);
    assert!(crl.has_changed().unwrap());
    for ledger in [ledger, desk.open()] {
        assert_eq!(ended(ledger.standing(&first)), Some(Reason::ProcessExited));
        assert_eq!(ledger.standing(&other), Standing::Stands);
        let lines = ledger.revoked("ca-1");
        assert_eq!(lines.iter().map(|line| line.serial.clone()).collect::<Vec<_>>(), [first.clone(), second.clone()]);
        assert_eq!(lines[0].at, desk.clock.now());
        assert!(ledger.revoked("ca-2").is_empty());
    }
}

#[tokio::test]
async fn what_is_issued_after_the_end_of_a_cgroup_that_came_to_life_again_stands() {
    let desk = Desk::new();
    let ledger = desk.open();
    let cgroup = desk.cgroup();
    let before = desk.issue(&ledger, Kind::Jwt, 1, &cgroup);
    ledger.tie_ended(&cgroup, Reason::CgroupEmpty).unwrap();
    let after = desk.issue(&ledger, Kind::Jwt, 2, &cgroup);
    for ledger in [ledger, desk.open()] {
        assert_eq!(ended(ledger.standing(&before)), Some(Reason::CgroupEmpty));
        assert_eq!(ledger.standing(&after), Standing::Stands);
    }
}

#[tokio::test]
async fn a_revocation_is_told_to_streams_and_comes_back_after_a_restart() {
    let desk = Desk::new();
    let ledger = desk.open();
    let [revoked, kept] = [1, 2].map(|number| desk.issue(&ledger, Kind::Jwt, number, &desk.process()));
    let mut revocations = ledger.revocations();
    revocations.mark_unchanged();
    let found = ledger.revoke(|credential| credential.id == revoked, Reason::Operator).await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(revocations.has_changed().unwrap());
    assert!(ledger.revoke(|credential| credential.id == revoked, Reason::Operator).await.unwrap().is_empty());
    for ledger in [ledger, desk.open()] {
        assert_eq!(ended(ledger.standing(&revoked)), Some(Reason::Operator));
        assert_eq!(ledger.standing(&kept), Standing::Stands);
    }
}

#[tokio::test]
async fn an_instance_keeps_only_what_it_is_entitled_to() {
    let desk = Desk::new();
    let ledger = desk.open();
    let token = desk.issue(&ledger, Kind::Jwt, 1, &desk.process());
    let keep = |entry: &'static str| move |of: &str, _: &str| of == entry;
    let instance = desk.instance.id();
    assert_eq!(ledger.keep_only(instance, keep("billing"), Reason::NoLongerMatches).await.unwrap(), 0);
    assert_eq!(ledger.keep_only(instance, keep("other"), Reason::NoLongerMatches).await.unwrap(), 1);
    assert_eq!(ended(ledger.standing(&token)), Some(Reason::NoLongerMatches));
}

#[tokio::test]
async fn a_single_use_token_is_used_once_also_across_a_restart_and_others_as_often_as_they_like() {
    let desk = Desk::new();
    let ledger = desk.open();
    let [once, often] = [1, 2].map(|number| id(Kind::Jwt, number));
    for id in [&once, &often] {
        let issued = Issued { single_use: *id == once, ..desk.issued(id, Kind::Jwt, HOUR) };
        ledger.record(&desk.instance, &desk.process(), &issued).unwrap();
    }
    assert_eq!(ledger.use_once(&once).unwrap(), Standing::Stands);
    for ledger in [ledger, desk.open()] {
        assert_eq!(ledger.use_once(&once).unwrap(), Standing::Used);
        assert_eq!(ledger.use_once(&often).unwrap(), Standing::Stands);
    }
}

#[tokio::test]
async fn a_certificate_whose_key_is_held_is_on_the_crl_too_so_that_its_connections_end() {
    for (reason, listed) in [(Reason::ProcessExited, true), (Reason::Operator, true), (Reason::AgentRestart, false)] {
        let desk = Desk::new();
        let ledger = desk.open();
        let id = id(Kind::X509, 1);
        let issued = Issued { held: true, ..desk.issued(&id, Kind::X509, HOUR) };
        ledger.record(&desk.instance, &desk.process(), &issued).unwrap();
        ledger.tie_ended(&desk.process(), reason).unwrap();
        assert_eq!(ended(ledger.standing(&id)), Some(reason));
        // What a restart of the agent lost was nobody's wrong: what it opened goes on.
        assert_eq!(ledger.revoked("ca-1").len(), usize::from(listed), "{reason:?}");
    }
}

#[tokio::test]
async fn a_reboot_ends_everything_that_is_not_tied_to_the_node() {
    let desk = Desk::new();
    let ledger = desk.open();
    let cgroup = desk.cgroup();
    let process = desk.issue(&ledger, Kind::X509, 1, &desk.process());
    let unit = desk.issue(&ledger, Kind::Jwt, 2, &cgroup);
    let node = desk.issue(&ledger, Kind::Jwt, 3, &Tie::Node);
    drop(ledger);
    let next: BootId = NEXT_BOOT.parse().unwrap();
    // The second start of the same boot says the same, with the same time.
    for _ in 0..2 {
        let (ledger, mut ties) = desk.open_at(next).unwrap();
        assert_eq!(ended(ledger.standing(&process)), Some(Reason::Rebooted));
        assert_eq!(ended(ledger.standing(&unit)), Some(Reason::Rebooted));
        assert_eq!(ledger.standing(&node), Standing::Stands);
        assert_eq!(ledger.revoked("ca-1")[0].at.unix_timestamp(), 1_800_000_000);
        assert_eq!((ties.try_recv(), ties.try_recv().is_err()), (Ok(Tie::Node), true));
        desk.hand.advance(Duration::from_secs(60));
    }
}

#[tokio::test]
async fn a_tie_is_announced_once_while_it_is_watched_and_let_go_when_nothing_stands_on_it() {
    let desk = Desk::new();
    let (ledger, mut ties) = desk.open_at(desk.boot).unwrap();
    desk.issue(&ledger, Kind::X509, 1, &desk.process());
    desk.issue(&ledger, Kind::X509, 2, &desk.process());
    assert_eq!(ties.try_recv(), Ok(desk.process()));
    assert!(ties.try_recv().is_err(), "announced once");
    let until = ledger.let_go(&desk.process()).expect_err("something stands on it");
    desk.hand.advance((until - desk.clock.now()).unsigned_abs());
    assert_eq!(ledger.let_go(&desk.process()), Ok(()));
    desk.issue(&ledger, Kind::X509, 3, &desk.process());
    assert_eq!(ties.try_recv(), Ok(desk.process()), "announced again");
}

#[tokio::test]
async fn a_record_that_was_not_written_whole_is_left_out_and_what_stands_before_it_stands() {
    let desk = Desk::new();
    let ledger = desk.open();
    let kept = desk.issue(&ledger, Kind::Jwt, 1, &desk.process());
    let torn = desk.issue(&ledger, Kind::Jwt, 2, &desk.process());
    drop(ledger);
    let last = desk.files().pop().unwrap();
    let whole = std::fs::read(&last).unwrap();
    for cut in 1..40 {
        std::fs::write(&last, &whole[..whole.len() - cut]).unwrap();
        let ledger = desk.open();
        assert_eq!(ledger.standing(&kept), Standing::Stands, "{cut} bytes missing");
        assert_eq!(ledger.standing(&torn), Standing::Unknown, "{cut} bytes missing");
    }
}

#[tokio::test]
async fn the_ledger_of_another_node_is_refused_with_what_to_do() {
    let desk = Desk::new();
    drop(desk.open());
    let other = Ledger::open(&desk.path(), &"f".repeat(32), desk.boot, desk.clock.clone(), LIMITS);
    let message = other.unwrap_err().to_string();
    assert!(message.contains("move it away"), "{message}");
}

#[tokio::test]
async fn expired_rows_go_and_their_files_with_them() {
    let desk = Desk::new();
    let ledger = desk.open();
    for number in 0..1000 {
        desk.issue(&ledger, Kind::Jwt, number, &desk.process());
    }
    assert_eq!(ledger.size().0, 1000);
    drop(ledger);
    let ledger = desk.open();
    desk.hand.advance(HOUR + Duration::from_secs(200));
    let last = desk.issue(&ledger, Kind::Jwt, 1001, &desk.process());
    assert_eq!(ledger.size().0, 1);
    ledger.sync().await;
    assert_eq!(desk.files().len(), 1, "the file of the first start is gone");
    assert_eq!(desk.open().standing(&last), Standing::Stands);
}

#[tokio::test]
async fn what_lives_long_is_carried_over_with_what_became_of_it_and_files_stay_few() {
    let desk = Desk::new();
    let ledger = desk.open();
    let day = 24 * HOUR;
    let [stands, revoked, used] = [1, 2, 3].map(|number| id(Kind::Jwt, number));
    for id in [&stands, &revoked, &used] {
        let issued = Issued { single_use: *id == used, ..desk.issued(id, Kind::Jwt, day) };
        ledger.record(&desk.instance, &desk.process(), &issued).unwrap();
    }
    ledger.revoke(|credential| credential.id == revoked, Reason::Operator).await.unwrap();
    ledger.use_once(&used).unwrap();
    let minute = Duration::from_secs(60);
    // Many times the size at which files are carried over, a few minutes of which live at any time.
    for number in 10..450_000_u32 {
        let id = id(Kind::Jwt, number);
        ledger.record(&desk.instance, &desk.process(), &desk.issued(&id, Kind::Jwt, minute)).unwrap();
        if number % 5_000 == 0 {
            desk.hand.advance(minute);
            ledger.sync().await;
        }
    }
    let (rows, bytes) = ledger.size();
    assert!(rows < 40_000, "{rows} rows");
    assert!(bytes < 16 * 1024 * 1024, "{bytes} bytes");
    assert!(!desk.files()[0].ends_with("0000000001.log"), "{:?}", desk.files());
    assert!(desk.files().len() < 20, "{:?}", desk.files());
    for ledger in [ledger, desk.open()] {
        assert_eq!(ledger.standing(&stands), Standing::Stands);
        assert_eq!(ended(ledger.standing(&revoked)), Some(Reason::Operator));
        assert_eq!(ledger.standing(&used), Standing::Used);
    }
}

#[tokio::test]
async fn a_row_that_is_carried_over_while_its_end_is_being_synced_does_not_come_back() {
    let desk = Desk::new();
    let ledger = desk.open();
    let token = desk.issue(&ledger, Kind::Jwt, 1, &Tie::Node);
    let key = ledger.key(&token).unwrap();
    // What a revocation does first, and a carry-over in the middle of it.
    {
        let mut state = ledger.lock();
        let State { index, log, .. } = &mut *state;
        log.ended(&[key], Reason::Operator, 1_800_000_000).unwrap();
        index.get_mut(&key).unwrap().ending = Some((Reason::Operator, 1_800_000_000));
    }
    assert_eq!(ledger.standing(&token), Standing::Stands, "nobody sees it before it is synced");
    {
        let mut state = ledger.lock();
        let State { index, log, .. } = &mut *state;
        log.begin_anew().unwrap();
        log.carry_the_oldest(index).unwrap();
    }
    ledger.sync().await;
    assert_eq!(desk.files().len(), 1, "only what was carried over is left");
    assert_eq!(ended(desk.open().standing(&token)), Some(Reason::Operator));
}

#[tokio::test]
async fn the_first_row_after_a_file_is_full_is_in_the_next_file() {
    let desk = Desk::new();
    let ledger = desk.open();
    let mut last = String::new();
    for number in 0.. {
        last = desk.issue(&ledger, Kind::Jwt, number, &desk.process());
        if desk.files().len() == 2 {
            break;
        }
    }
    let first_file = desk.files()[0].clone();
    std::fs::remove_file(first_file).unwrap();
    // It would be missed.
    std::fs::remove_file(desk.head()).unwrap();
    assert_eq!(desk.open().standing(&last), Standing::Stands);
}

#[tokio::test]
async fn one_user_cannot_fill_the_ledger_for_the_others() {
    let desk = Desk::new();
    let ledger = desk.open();
    let record = |number: u32, uid: u32, held: bool| {
        let id = id(Kind::X509, number);
        ledger.record(&desk.instance, &desk.process(), &Issued { uid, held, ..desk.issued(&id, Kind::X509, HOUR) })
    };
    for number in 0..1000 {
        record(number, 1000, false).unwrap();
    }
    let refused = record(1001, 1000, false).unwrap_err().to_string();
    assert!(refused.contains("1000 certificates") && refused.contains("limits.certificates_per_uid"), "{refused}");
    // One whose key is held comes onto the list too when it ends.
    record(1002, 1000, true).unwrap_err();
    record(1003, 1001, false).expect("another user");
    desk.hand.advance(HOUR + Duration::from_secs(200));
    record(1004, 1000, false).expect("the others have expired");
}

#[tokio::test]
async fn what_is_kept_only_because_the_clock_may_be_wrong_takes_nothing_of_a_users_share() {
    let desk = Desk::new();
    let ledger = desk.open();
    desk.hand.set(desk.clock.now() + 60 * HOUR);
    let minute = Duration::from_secs(60);
    for number in 0..2 * 1000 {
        for (kind, number) in [(Kind::X509, number), (Kind::Jwt, 10_000 + number)] {
            let id = id(kind, number);
            ledger.record(&desk.instance, &Tie::Node, &desk.issued(&id, kind, minute)).unwrap();
        }
        desk.hand.advance(Duration::from_secs(10));
    }
    assert_eq!(ledger.size().0, 4000, "all are kept");
    assert_eq!(ledger.standing(&id(Kind::Jwt, 10_000)), Standing::Stands, "if the clock is set back");
    desk.hand.advance(24 * HOUR);
    desk.issue(&ledger, Kind::Jwt, 50_000, &Tie::Node);
    assert_eq!(ledger.size().0, 1, "nobody set it back for a day");
}

#[tokio::test]
async fn of_the_tokens_that_are_kept_because_the_clock_may_be_wrong_a_user_has_no_more_than_of_others() {
    let desk = Desk::new();
    let limits = Limits { credentials_per_uid: 100, certificates_per_uid: 50 };
    let (ledger, _ties) = Ledger::open(&desk.path(), NODE, desk.boot, desk.clock.clone(), limits).unwrap();
    desk.hand.set(desk.clock.now() + 60 * HOUR);
    let record = |number: u32, kind: Kind| {
        let id = id(kind, number);
        let made = ledger.record(&desk.instance, &Tie::Node, &desk.issued(&id, kind, Duration::from_secs(60)));
        desk.hand.advance(Duration::from_secs(10));
        made
    };
    for number in 0..500 {
        record(number, Kind::Jwt).unwrap();
    }
    assert!((100..150).contains(&ledger.size().0), "{:?}", ledger.size());
    assert_eq!(ledger.standing(&id(Kind::Jwt, 0)), Standing::Stands);
    assert_eq!(ledger.standing(&id(Kind::Jwt, 300)), Standing::Unknown, "so it does not stand");
    let refused = (1000..1500).find_map(|number| record(number, Kind::X509).err()).expect("certificates are kept");
    assert!(refused.to_string().contains("limits.credentials_per_uid"), "{refused}");
}

#[tokio::test]
async fn what_is_revoked_while_the_clock_is_ahead_is_revoked_when_it_is_right() {
    let desk = Desk::new();
    let ledger = desk.open();
    let (certificate, token) =
        (desk.issue(&ledger, Kind::X509, 1, &Tie::Node), desk.issue(&ledger, Kind::Jwt, 2, &Tie::Node));
    let start = desk.clock.now();
    desk.hand.set(start + 2 * HOUR);
    let mut shown = 0;
    ledger.each(|_| shown += 1);
    assert_eq!(shown, 0, "they have expired");
    let ended_now = ledger.revoke(|credential| credential.entry == "billing", Reason::EntryGone).await.unwrap();
    assert_eq!(ended_now.len(), 2);
    desk.hand.set(start);
    for ledger in [ledger, desk.open()] {
        assert_eq!(ended(ledger.standing(&certificate)), Some(Reason::EntryGone));
        assert_eq!(ledger.revoked("ca-1").len(), 1, "it is on the list");
        assert_eq!(ended(ledger.standing(&token)), Some(Reason::EntryGone));
    }
}

#[tokio::test]
async fn of_two_syncs_that_end_in_the_wrong_order_the_older_says_nothing_of_files_that_are_gone() {
    let desk = Desk::new();
    let ledger = desk.open();
    let minute = Duration::from_secs(60);
    let mut fill = (0_u32..).map(|number| {
        let id = id(Kind::Jwt, number);
        ledger.record(&desk.instance, &Tie::Node, &desk.issued(&id, Kind::Jwt, minute)).unwrap();
    });
    let mut next_file = || while desk.files().len() < 3 && fill.next().is_some() {};
    next_file();
    // Everything in the older files has expired with the next row, and what is synced first is what was taken last.
    desk.hand.advance(HOUR);
    desk.issue(&ledger, Kind::X509, 1, &Tie::Node);
    let older = ledger.lock().log.take_unsynced();
    desk.issue(&ledger, Kind::X509, 2, &Tie::Node);
    let newer = ledger.lock().log.take_unsynced();
    let mut heading = ledger.0.heading.lock().unwrap();
    for sync in [newer, older] {
        heading.synced(&sync, desk.clock.memory()).unwrap();
        for number in sync.dead {
            std::fs::remove_file(log::path(&desk.path(), number)).unwrap();
        }
    }
    drop(heading);
    drop(ledger);
    assert_eq!(desk.open().repaired(), None);
}

#[tokio::test]
async fn the_end_of_very_many_credentials_is_read_again() {
    let desk = Desk::new();
    let ledger = desk.open();
    for number in 0..3000 {
        desk.issue(&ledger, Kind::Jwt, number, &Tie::Node);
    }
    let before = std::fs::metadata(desk.files().pop().unwrap()).unwrap().len();
    assert_eq!(ledger.revoke(|_| true, Reason::Operator).await.unwrap().len(), 3000);
    drop(ledger);
    let after = std::fs::read(desk.files().pop().unwrap()).unwrap();
    let ends = &after[usize::try_from(before).unwrap()..];
    let (first, _) = crate::base::frames::read(ends).unwrap();
    assert!(first.len() < 20 * 1024, "{} bytes in one record", first.len());
    let again = desk.open();
    assert!((0..3000).all(|number| ended(again.standing(&id(Kind::Jwt, number))) == Some(Reason::Operator)));
}

#[test]
fn every_reason_has_one_name() {
    let names: HashSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    assert!(Reason::ALL.iter().all(|reason| Reason::parse(reason.as_str()) == Some(*reason)));
}
