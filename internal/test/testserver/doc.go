// Package testserver runs stock NATS servers for tests, with options that package
// embedded does not offer: accounts, operators, or no JetStream at all.
package testserver
