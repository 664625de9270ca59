use super::*;
use crate::attest::container::Config;
use crate::attest::container::tests::Box;

const A: &str = "4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f";
const B: &str = "b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0";

fn found(kind: Kind, path: &str) -> Option<(String, &str)> {
    let (id, end) = container_in_path(kind, &Config::usual(kind).parents, path)?;
    Some((id.as_str().to_owned(), &path[..end]))
}

#[test]
fn containers_are_found_where_the_engines_put_them() {
    let cases: &[(Kind, String)] = &[
        (Kind::Docker, format!("/docker/{A}")),
        (Kind::Docker, format!("/system.slice/docker-{A}.scope")),
        (Kind::Podman, format!("/machine.slice/libpod-{A}.scope")),
        (Kind::Podman, format!("/libpod_parent/libpod-{A}")),
        (Kind::Podman, format!("/libpod_parent/{B}/libpod-{A}")),
        (Kind::Podman, format!("/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope")),
        (Kind::Podman, format!("/system.slice/web.service/libpod-payload-{A}")),
        (Kind::Podman, format!("/system.slice/system-web.slice/web@1.service/libpod-payload-{A}")),
    ];
    for (kind, path) in cases {
        assert_eq!(found(*kind, path), Some((A.to_owned(), path.as_str())), "{path}");
        // What is below is the container's own, whatever it is called.
        for below in
            ["container", "init.scope", "system.slice/x.service", &format!("docker/{B}"), &format!("libpod-{B}")]
        {
            assert_eq!(found(*kind, &format!("{path}/{below}")), Some((A.to_owned(), path.as_str())), "{path}/{below}");
        }
    }
}

#[test]
fn a_name_that_others_may_give_a_control_group_is_no_container() {
    let user = "/user.slice/user-1000.slice/user@1000.service";
    for path in [
        "/".to_owned(),
        "/docker".to_owned(),
        format!("/{A}"),
        format!("/docker-{A}.scope"),
        format!("/libpod-{A}.scope"),
        format!("{user}/docker/{A}"),
        format!("{user}/app.slice/docker-{A}.scope"),
        format!("{user}/user.slice/libpod-{A}.scope/container"),
        format!("/user.slice/libpod-{A}.scope"),
        format!("/system.slice/ci.service/docker/{A}"),
        format!("/system.slice/ci.service/docker-{A}.scope"),
        format!("/system.slice/ci.service/machine.slice/libpod-{A}.scope"),
        format!("/system.slice/ci.service/job/libpod-payload-{A}"),
        format!("/docker/{}", &A[1..]),
        format!("/docker/{A}0"),
        format!("/docker/{}", A.to_uppercase()),
        format!("/docker/{}", A.replacen('4', "g", 1)),
        format!("/docker/x{A}"),
        format!("/docker//{A}"),
        format!("/system.slice/docker-{A}.service"),
        format!("/machine.slice/libpod-conmon-{A}.scope"),
        format!("/libpod_parent/a/b/libpod-{A}"),
        format!("docker/{A}"),
    ] {
        for kind in [Kind::Docker, Kind::Podman] {
            assert_eq!(found(kind, &path), None, "{path}");
        }
    }
}

#[test]
fn a_place_is_a_path_from_the_root_with_at_most_one_star_in_a_name() {
    for text in ["/docker", "/system.slice/a-*.slice", "/a/*/c"] {
        assert!(text.parse::<Parent>().is_ok(), "{text}");
    }
    for text in ["", "/", "docker", "/a/", "/a//b", "/a/../b", "/a/.", "/a/*x*"] {
        assert_eq!(text.parse::<Parent>(), Err(InvalidParent(text.to_owned())));
    }
    let parent: Parent = "/a/x-*.slice".parse().expect("valid");
    assert!(parent.is(&["a", "x-1.slice"]));
    assert!(!parent.is(&["a", "x-.slic"]) && !parent.is(&["a"]) && !parent.is(&["a", "x-1.slice", "b"]));
}

fn paths(unified: Option<&str>, systemd: Option<&str>) -> CgroupPaths {
    CgroupPaths { unified: unified.map(str::to_owned), systemd: systemd.map(str::to_owned) }
}

fn located(paths: &CgroupPaths) -> Result<Located, Moved> {
    locate_in(Kind::Docker, &Config::usual(Kind::Docker).parents, paths, |_, _| true)
}

#[test]
fn a_process_in_no_container_is_known_to_be_in_none_and_one_that_cannot_be_placed_is_not_known() {
    for outside in [
        paths(Some("/"), None),
        paths(Some("/system.slice/a.service"), Some("/system.slice/a.service")),
        paths(None, Some("/user.slice")),
    ] {
        assert_eq!(located(&outside), Ok(Located::Outside(None)), "{outside:?}");
    }
    for (unknown, why) in [
        (paths(None, None), "no cgroup hierarchy"),
        (paths(Some("/../x"), None), "outside the agent's cgroup namespace"),
        (paths(Some("/"), Some("/../x")), "outside the agent's cgroup namespace"),
    ] {
        let Ok(Located::Unknown(found)) = located(&unknown) else { panic!("{unknown:?}") };
        assert!(found.contains(why), "{found}");
    }
    let removed = format!("/docker/{A} (deleted)");
    assert_eq!(located(&paths(Some(&removed), None)), Err(Moved));
    let nowhere = format!("/docker/{}", "0".repeat(64));
    assert_eq!(located(&paths(Some(&nowhere), None)), Err(Moved), "there is no such directory");
}

#[test]
fn a_control_group_that_only_looks_like_a_containers_is_remarked_upon() {
    let user = format!("/user.slice/user-1000.slice/user@1000.service/docker/{A}");
    let Ok(Located::Outside(Some(remark))) = located(&paths(Some(&user), None)) else { panic!("outside") };
    assert!(remark.contains("attest.docker.cgroup_parents"), "{remark}");
}

#[test]
fn a_directory_counts_only_where_root_alone_may_write_to_all_above_it() {
    let Some(container) = Box::start(Kind::Docker) else { return };
    let Ok(Located::In(place)) = container.locate() else { panic!("it is in its container") };
    assert_eq!(place.container.as_str(), container.id);
    assert!(place.holds(&container.proc_dir()).expect("readable"));
    container.delegate(65_534, 0o755);
    let Ok(Located::Outside(Some(remark))) = container.locate() else { panic!("a user could have made it") };
    assert!(remark.contains("user 65534"), "{remark}");
    container.delegate(0, 0o775);
    assert!(matches!(container.locate(), Ok(Located::Outside(Some(_)))), "a group could have made it");
}

#[test]
fn a_container_in_one_hierarchy_is_one_though_the_other_cannot_be_seen() {
    let Some(container) = Box::start(Kind::Docker) else { return };
    let unified = CgroupPaths::read(&container.proc_dir()).expect("readable").unified;
    let paths = CgroupPaths { unified, systemd: Some("/../..".to_owned()) };
    let located = locate_in(Kind::Docker, &container.parents(), &paths, |_, _| true);
    assert!(matches!(located, Ok(Located::In(_))), "{located:?}");
}

#[test]
fn a_process_that_is_elsewhere_by_now_is_not_held_by_the_place_it_was_in() {
    let Some(container) = Box::start(Kind::Docker) else { return };
    let Ok(Located::In(place)) = container.locate() else { panic!("it is in its container") };
    container.leave();
    assert!(!place.holds(&container.proc_dir()).expect("readable"));
    assert!(place.stands());
    container.make_anew();
    assert!(!place.stands(), "another directory at the same path is another container");
}
