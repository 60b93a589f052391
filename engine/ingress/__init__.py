"""What comes in from outside: bounces, complaints and unsubscribe requests. Nothing in here is trusted."""
