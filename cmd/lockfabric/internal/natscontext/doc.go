// Package natscontext reads the contexts of the nats command, and makes options of
// the NATS client from what they say about whom to be and how to encrypt.
//
// A library does not do it: one drops settings that it doesn't know what to do
// with, and connects as somebody else then; the other one brings half a dozen modules
// along. A setting that isn't known, or can't be used for locks, is an error here
// that says what to do instead. Errors never have a secret in them.
package natscontext
