// Package demo connects the example programs: to the server that they are given,
// or to one that runs inside them.
package demo
