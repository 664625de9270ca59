//! A disk that takes nothing more.

use super::*;

#[tokio::test]
async fn on_a_full_disk_nothing_is_allowed_to_happen_and_health_says_why() {
    let (world, disk) = (World::new(), FullDisk::default());
    let audit = world.open_on(&disk);
    let healthy = audit.healthy();
    assert_eq!(*healthy.borrow(), Ok(()));
    disk.fills(true);
    let mut events = audit.subscribe();
    assert!(matches!(audit.before(refused("before")), Err(AuditError::File(_))));
    assert!(audit.synced(refused("synced")).await.is_err());
    assert!(events.try_recv().is_err(), "what did not happen is not told");
    audit.record(refused("after"));
    assert!(events.try_recv().is_ok());
    let why = healthy.borrow().clone().unwrap_err();
    assert!(why.contains("append to") && why.contains("1 records are lost"), "{why}");

    disk.fills(false);
    world.hand.advance(Duration::from_secs(60));
    audit.before(refused("again")).unwrap();
    assert_eq!(*healthy.borrow(), Ok(()));
    let records = world.records();
    assert_eq!(world.events(), ["audit_began", "audit_interrupted", "refused"]);
    assert_eq!((&records[1]["lost"], &records[1]["since"]), (&1.into(), &"2023-11-14T22:13:20Z".into()));
    assert_eq!(records[2]["detail"], "again");
    assert!(world.verify().ok);
}

#[tokio::test]
async fn with_the_alarm_alone_work_goes_on_and_every_lost_record_is_counted() {
    let (mut world, disk) = (World::new(), FullDisk::default());
    world.settings.on_failure = OnFailure::Alarm;
    let audit = world.open_on(&disk);
    disk.fills(true);
    audit.before(refused("before")).unwrap();
    audit.synced(refused("synced")).await.unwrap();
    audit.record(refused("after"));
    assert!(audit.healthy().borrow().is_err());
    disk.fills(false);
    audit.record(refused("again"));
    assert_eq!(world.records()[1]["lost"], 3);
    assert!(audit.healthy().borrow().is_ok());
}

#[tokio::test]
async fn it_recovers_although_nobody_has_anything_to_record() {
    let (world, disk) = (World::new(), FullDisk::default());
    let audit = world.open_on(&disk);
    disk.fills(true);
    audit.record(refused("lost"));
    disk.fills(false);
    let (stop, drain) = drain::channel();
    let keeper = tokio::spawn({
        let audit = audit.clone();
        async move { audit.keep(drain).await }
    });
    let mut healthy = audit.healthy();
    let recovered = healthy.wait_for(Result::is_ok);
    tokio::time::timeout(Duration::from_secs(20), recovered).await.expect("it tries again").unwrap();
    stop.drain().await;
    keeper.await.unwrap();
    assert_eq!(world.events(), ["audit_began", "audit_interrupted"]);
}

#[test]
fn a_file_that_cannot_be_begun_is_no_reason_not_to_write_into_the_one_there_is() {
    let (world, disk) = (World::rotating(400, 10), FullDisk::default());
    let audit = world.open_on(&disk);
    audit.record(refused("one"));
    let blocked = world.settings.dir.join(format!("{:020}.jsonl", 3));
    std::fs::create_dir(&blocked).unwrap();
    audit.before(refused("two")).unwrap();
    audit.before(refused("three")).unwrap();
    std::fs::remove_dir(&blocked).unwrap();
    assert!(world.verify().ok);
    assert_eq!(world.events().len(), 4);
    assert!(world.dir.path().exists());
}
