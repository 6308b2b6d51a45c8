// Package clock measures elapsed time for leases. The two sides of a lease have different
// clocks, because each side may err in one direction only.
//
//   - A holder that measures too much time gives a lock up early, which costs
//     availability. One that measures too little believes in a lock that others
//     may already have. So [Holder] goes on counting while the host is suspended,
//     if the operating system has such a clock.
//   - An observer that measures too little time waits longer before it declares
//     a lease dead. One that measures too much kills a lease that is still
//     valid. So [Observer] is Go's monotonic clock, which may stop while the
//     host is suspended and never runs ahead.
//
// Nobody sets these clocks, and they don't jump with the wall clock. Their values mean nothing on another host or after
// a restart. A lease also assumes that the rates of two clocks differ by less than its margin.
//
// If the operating system has no clock that counts suspension, or does not allow reading it, Holder is Go's
// monotonic clock, too. A holder on a host that was suspended for longer than its lease then learns of the loss late, and
// only fencing tokens protect the resource.
package clock
