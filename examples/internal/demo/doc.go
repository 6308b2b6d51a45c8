// Package demo connects the example programs to a given server, or to an embedded one.
package demo
