//go:build race

package explore

// With the race detector, which has nothing to find in one goroutine and makes it ten times slower,
// only the states nearest to the first are visited.
const raceDetector = true
