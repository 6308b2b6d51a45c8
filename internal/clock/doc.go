// Package clock measures elapsed time for leases, on the two sides of a lease
// separately, because the two sides may err in opposite directions only.
//
//   - A holder that measures too much time gives a lock up early, which costs
//     availability. One that measures too little believes in a lock that others
//     may already have. So [Holder] keeps counting while the host is suspended,
//     where the operating system has a clock that does.
//   - An observer that measures too little time waits longer before it declares
//     a lease dead. One that measures too much kills a lease that is still
//     valid. So [Observer] is Go's monotonic clock, which may stop while the
//     host is suspended and never runs ahead.
//
// Neither is set by anybody or jumps with the wall clock, and neither means anything on another host or after a
// restart. What a lease assumes beyond that is that the rates of two clocks differ by less than its margin.
//
// Where the operating system has no clock that counts suspension, or does not let us read it, Holder is Go's
// monotonic clock too: a holder on a host that was suspended past its lease then learns of the loss late, and only
// fencing tokens protect the resource.
package clock
