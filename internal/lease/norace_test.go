//go:build !race

package lease_test

// underRace says that the race detector is on.
const underRace = false
