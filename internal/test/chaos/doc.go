// Package chaos puts a load on the lock while everything that can fail fails,
// and checks that the promises hold. It is for tests only.
//
// A [Workload] runs many goroutines over several managers: exclusive and shared
// acquires, tries, short waits, cancelled waits, explicit owners, holds of
// limited life, releases under ended contexts. Every error that a caller sees
// has to be one that the scenario allows; see [Tolerance].
//
// # How holds are checked
//
// All managers live in one process, so one [Oracle] can look at all their
// handles at one instant. At every grant it asks, under one mutex, the new
// handle and then each other handle of the same key whether it is valid. A
// handle never becomes valid again, so one that answers yes was valid at the
// moment the new one said so too: two conflicting ones are an overlap, whatever
// the clocks and the server think. Of two overlapping holds one is granted later,
// so no overlap is missed. A handle is taken out right before its release is
// called, since it is invalid from then on.
//
// The oracle also checks the fencing tokens: an exclusive one is above all that
// were seen for the key, a shared one above all exclusive ones.
//
// # Histories
//
// A [Recorder] keeps calls and returns of all operations. [Linearizable] holds
// them against a model of a fenced lock with Porcupine, which knows nothing of
// handles and validity. Connections made with [WithoutCAS] lose the expected
// revision of every write on the way to the server; their histories have to
// be refused, which shows that the check can see something.
package chaos
