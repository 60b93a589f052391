"""What a reply or a bounce means for the list of recipients: rules in data, and the classifier that applies them."""
