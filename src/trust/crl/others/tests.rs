//! What is taken of what other nodes hand over, and for how long.

use std::time::Duration;

use super::super::tests::{Bench, DAY, Node, START, numbered};
use super::*;
use crate::x509::{KeyType, PrivateKey, Validity, self_signed_root};

/// Two nodes of one trust domain that have each other's roots.
async fn two() -> (Bench, Node, Bench, Node) {
    let (of_a, of_b) = (Bench::new(), Bench::new());
    let (a, b) = (of_a.open().await, of_b.open().await);
    for (node, other) in [(&a, &b), (&b, &a)] {
        let roots = other.trust.current().own().x509().to_pem();
        node.trust.set(node.trust.current().domain().clone(), roots.as_bytes()).await.unwrap();
    }
    (of_a, a, of_b, b)
}

async fn handed(node: &Node) -> Vec<Handed> {
    node.crls.current().await.to_hand_over().collect()
}

#[tokio::test]
async fn lists_of_another_node_stand_beside_ours_and_newer_ones_replace_them() {
    let (of_a, a, _of_b, b) = two().await;
    let before = handed(&a).await;
    b.crls.take("a", &before).unwrap();
    assert_eq!((b.crls.current().await.der().len(), b.crls.current().await.of_others()), (4, 2));
    assert_eq!(b.lists_with(1).await, 0);

    of_a.script.revoke(&a.active(), [numbered(1)], START);
    of_a.hand.advance(Duration::from_secs(1));
    let after = handed(&a).await;
    b.crls.take("a", &after).unwrap();
    assert_eq!(b.lists_with(1).await, 1);
    let set = b.crls.current().await;
    assert_eq!(set.der().len(), 4);
    assert!(set.parsed().unwrap().iter().any(|list| list.revokes(&numbered(1))));

    b.crls.take("a", &before).unwrap();
    assert!(Arc::ptr_eq(&set, &b.crls.current().await), "an older one changes nothing");
    b.crls.take("a", &[]).unwrap();
    assert!(Arc::ptr_eq(&set, &b.crls.current().await), "and neither does silence");
    assert_eq!(b.crls.current().await.to_hand_over().count(), 2, "what was taken is not handed on");
}

#[tokio::test]
async fn a_list_of_another_node_stays_until_its_end() {
    let (_of_a, a, of_b, b) = two().await;
    b.crls.take("a", &handed(&a).await).unwrap();
    of_b.hand.advance(DAY - Duration::from_secs(1));
    assert_eq!(b.crls.current().await.of_others(), 2);
    of_b.hand.advance(Duration::from_secs(1));
    assert_eq!(b.crls.current().await.of_others(), 0);
    assert!(matches!(b.crls.take("a", &handed(&a).await), Err(HandedError::List(X509Error::StaleCrl(_)))));
}

#[tokio::test]
async fn lists_that_do_not_hold_by_our_bundle_are_not_taken() {
    let (_of_a, a, _of_b, b) = two().await;
    let stranger = Bench::new().open().await;
    let good = handed(&a).await;
    let signing = good.iter().find(|list| Chain::from_der(&list.issuer).unwrap().leaf().path_len() == Some(0)).unwrap();
    let root = good.iter().find(|list| list.issuer != signing.issuer).unwrap();

    // An authority that gives itself the name of one of a's.
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let validity = Validity { not_before: START, not_after: START + DAY };
    let impostor = self_signed_root(a.trust.current().domain().clone(), key, validity, &numbered(9)).unwrap();
    let by_impostor = Bytes::copy_from_slice(&impostor.sign_crl(&[], validity, u64::MAX).unwrap());
    let of_impostor = Bytes::copy_from_slice(impostor.certificate().der());
    let mut broken = signing.der.to_vec();
    *broken.last_mut().unwrap() ^= 1;

    let list = |issuer: &Bytes, der: &Bytes| Handed { issuer: issuer.clone(), der: der.clone() };
    let ours = handed(&b).await;
    let rows = [
        ("of a stranger's authority", handed(&stranger).await, "a revocation list is not believed"),
        ("with the wrong authority", vec![list(&root.issuer, &signing.der)], "a revocation list is not believed"),
        ("whose signature is broken", vec![list(&signing.issuer, &broken.into())], "a revocation list is not believed"),
        ("of an impostor", vec![list(&of_impostor, &by_impostor)], "a revocation list is not believed"),
        ("by an impostor", vec![list(&signing.issuer, &by_impostor)], "a revocation list is not believed"),
        ("without an authority", vec![list(&Bytes::new(), &signing.der)], "a revocation list is not believed"),
        ("which is none", vec![list(&signing.issuer, &signing.issuer)], "a revocation list is not believed"),
        ("of our own authority", vec![ours[0].clone()], "a revocation list is of an authority of this node"),
        ("too many", vec![signing.clone(); MAX_LISTS + 1], "there are more than"),
    ];
    for (what, lists, expected) in rows {
        // Nothing of it is taken, also not what is good.
        let lists: Vec<_> = lists.into_iter().chain([signing.clone()]).collect();
        let refused = b.crls.take("a", &lists).unwrap_err();
        assert!(refused.to_string().starts_with(expected), "{what}: {refused}");
        assert_eq!(b.crls.current().await.of_others(), 0, "{what}");
    }
    b.crls.take("a", &good).unwrap();
    assert_eq!(b.crls.current().await.of_others(), 2);
}
