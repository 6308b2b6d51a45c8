// Package chaos puts a load on locks while connections, servers and processes fail,
// and checks that all guarantees hold. It is for tests only.
//
// A [Workload] runs many goroutines over several managers: exclusive and shared
// acquires, tries, short waits, cancelled waits, explicit owners, holds of
// limited life, releases under ended contexts. Every error that a caller sees
// has to be one that the scenario allows; see [Tolerance].
//
// # How holds are checked
//
// All managers live in one process, so one [Oracle] can check all their
// handles at one moment. At every grant it asks, under one mutex, first the new
// handle and then each other handle of the same key whether it is valid. A
// handle never becomes valid again. So a handle that is valid then was also valid when
// the new handle was: if the two conflict, they overlap, whatever
// the clocks and the server say. One of two overlapping holds is granted later,
// so no overlap is missed. A handle is removed right before its release is
// called, since it is invalid from then on.
//
// The oracle also checks the fencing tokens: an exclusive token is above all tokens
// seen for the key, a shared token is above all exclusive ones.
//
// # Histories
//
// A [Recorder] keeps calls and returns of all operations. [Linearizable] checks
// them with Porcupine against a model of a fenced lock that does not contain
// handles or validity. Connections made with [WithoutCAS] lose the expected
// revision of every write on the way to the server. Their histories must
// be refused, which shows that the check can fail.
package chaos
