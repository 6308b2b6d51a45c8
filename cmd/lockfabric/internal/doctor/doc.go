// Package doctor looks at a server, its cluster and a fabric's buckets, and says
// what is wrong and what to do about it.
//
// It never fixes anything. It creates no bucket and writes nothing but its probe: one lock of a name that nobody can
// guess, acquired and released some times, which leaves a delete marker and the tombstone of one lease; both are
// collected by the server. Options.NoProbe leaves that out, too.
//
// A finding is a problem when locks are unsafe or don't work, a warning when they do now and something is likely to
// change that, and unknown when it could not be found out: a check that did not run never counts as passed. What
// stays out of sight: a restore of both buckets from one backup leaves no trace in them.
package doctor
