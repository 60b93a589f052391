"""The suppression list as regions share it and as users import and export it."""
