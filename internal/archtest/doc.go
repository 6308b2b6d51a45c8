// Package archtest holds the tests of the tree itself: which package may import
// which, and the few rules of layout that a compiler doesn't know.
//
// Imports go downwards only:
//
//	cmd, examples
//	primitives
//	fabric
//	coalesce
//	internal/engine
//	internal/lease   internal/record
//	kv               internal/clock
//
// embedded stands aside: it carries the whole NATS server, so only programs and tests may import it, and nothing else
// may import the server. The table in layers_test.go is the truth; a package that is missing there fails the test.
package archtest
