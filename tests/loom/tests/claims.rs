//! Whose flows are whose: two that claim a slot never own it at a time, and who owns it next sees all that was done before.

use loom::{cell::UnsafeCell, sync::Arc, thread};
use passt_loom::claims::{ClaimSlot, Claims};

const SLOT: ClaimSlot = ClaimSlot::from_bits(0);

/// Works with what belongs to the slot, if it is `me` who owns it.
fn work(claims: &Claims, owned: &UnsafeCell<()>, me: usize) {
    if claims.claim(SLOT, me) == me {
        // Loom panics where another's use does not come before or after.
        owned.with_mut(|_| ());
    }
    claims.release(SLOT);
}

#[test]
fn owners_of_a_slot_come_one_after_the_other() {
    loom::model(|| {
        let claims = Arc::new(Claims::default());
        let owned = Arc::new(UnsafeCell::new(()));
        let other = thread::spawn({
            let (claims, owned) = (claims.clone(), owned.clone());
            move || {
                work(&claims, &owned, 1);
                work(&claims, &owned, 1);
            }
        });
        work(&claims, &owned, 0);
        work(&claims, &owned, 0);
        other.join().unwrap();
    });
}
